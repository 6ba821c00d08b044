"""The service as clients meet it: a web process over the population, for all tests of this folder."""

from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.fixtures.web_process import WebProcess, web_process


@pytest.fixture(scope="package")
def service(_population: datetime) -> Iterator[WebProcess]:
    with web_process() as web:
        yield web
