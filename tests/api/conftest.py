"""Clients of the API: with a fresh directory of keys, because the database forgets between tests and it would not."""

from collections.abc import Callable, Iterator

import pytest
from django.test import Client

from mlserve import health
from mlserve.api.key_copy import key_copy
from mlserve.api.keys import issue_key
from mlserve.api.lookup import directory


@pytest.fixture(autouse=True)
def _empty_directory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begins after the database and so ends before it: the pollers use it until they are stopped."""
    for name in {"db", "transactional_db"}.intersection(request.fixturenames):
        request.getfixturevalue(name)
    directory.forget()
    key_copy.forget()
    yield
    directory.forget()
    key_copy.forget()


@pytest.fixture(autouse=True)
def _no_readiness_yet() -> Iterator[None]:
    """No test is answered by what an earlier one found out."""
    health.forget()
    yield
    health.forget()


@pytest.fixture
def client_with(db: None) -> Callable[..., Client]:
    """A test client whose requests carry a key with the given scopes."""

    def make(*scopes: str) -> Client:
        key = issue_key(name="a test", scopes=scopes).key
        return Client(headers={"authorization": f"Bearer {key}"})

    return make


@pytest.fixture
def with_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health asks whoever registered; what a model is, is the registry's matter and tested there."""
    monkeypatch.setitem(health._registry, "model", health._Registered(lambda: "fraud 1 is active", True))
    for name in ("activation", "policies"):
        monkeypatch.setitem(health._registry, name, health._Registered(lambda: "as PostgreSQL says", False))
