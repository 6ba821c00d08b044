import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlserve.embedded import Servers


@pytest.fixture
def root() -> Iterator[Path]:
    """An empty folder that the servers' user can reach; what runs below it is stopped in the end."""
    path = Path(tempfile.mkdtemp(prefix="mlserve-playground-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    Servers(path).destroy()
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def playground() -> Iterator[Servers]:
    """Running servers that the tests of one module break in turn."""
    path = Path(tempfile.mkdtemp(prefix="mlserve-playground-", dir="/var/tmp"))
    path.chmod(0o711)
    servers = Servers(path, durable=False)
    servers.up()
    yield servers
    servers.destroy()
    shutil.rmtree(path)
