"""Valid keys of which this process has seen nothing, or that were valid before it started."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import DatabaseError, connections
from django.test import Client

from mlserve.api.key_copy import KeyCopy, keys_copy
from mlserve.api.keys import digest_of, issue_key, revoke_key, set_limit
from mlserve.api.limit import Limit
from mlserve.api.lookup import KEPT_FOR_S, directory
from mlserve.api.models import ApiKey
from mlserve.cache import wiring
from tests.fixtures.population import forget_copies
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)
KEY, OTHER = "mls_test_of_the_copy_1", "mls_test_of_the_copy_2"
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _forget_copies() -> Iterator[None]:
    forget_copies()
    yield
    forget_copies()
    wiring.reset()


@pytest.fixture
def issue() -> Callable[[str], ApiKey]:
    return lambda key: issue_key(name="a test", scopes=["score"], key=key).record


def _kept_by(copy: KeyCopy) -> None:
    """As its thread does."""
    copy.poller.poll_now()
    copy._keep()


def _digest(key: str) -> str:
    return digest_of(key.encode())


def test_the_next_process_knows_the_keys_and_not_what_they_are(issue: Callable[[str], ApiKey]) -> None:
    """Their digests, scopes and limits, and since when; a key that is revoked is gone from the next copy."""
    first, second = issue(KEY), issue(OTHER)
    set_limit(first, rate_per_s=5, burst=20)
    revoked = issue("mls_test_of_the_copy_3")
    revoke_key(revoked, now=NOW)
    copy = KeyCopy()
    _kept_by(copy)
    on_disk = keys_copy().path
    assert on_disk.stat().st_mode & 0o777 == 0o600
    assert KEY.encode() not in on_disk.read_bytes() and _digest(KEY).encode() in on_disk.read_bytes()
    found = KeyCopy().find(_digest(KEY))
    assert found is not None and found == copy.find(_digest(KEY))
    assert (found.key.prefix, found.key.scopes, found.key.rate_per_s, found.key.burst) == (
        first.prefix,
        ("score",),
        5,
        20,
    )
    assert KeyCopy().find(revoked.digest) is None
    revoke_key(second, now=NOW)
    _kept_by(copy)
    assert KeyCopy().find(_digest(OTHER)) is None


def test_a_key_that_was_found_out_to_be_revoked_does_not_come_back(issue: Callable[[str], ApiKey]) -> None:
    """Neither from the disk nor from an answer that was asked for before."""
    key = issue(KEY)
    _kept_by(KeyCopy())
    new = KeyCopy()
    new.revoke(key.digest)
    assert new.find(key.digest) is None
    _kept_by(other := KeyCopy())
    assert other.find(key.digest) is not None
    other.revoke(key.digest)
    assert other.find(key.digest) is None
    before, other._revoked[key.digest] = other._revoked[key.digest], float("inf")  # after any question
    other.poller.poll_now()
    assert other.find(key.digest) is None
    other._revoked[key.digest] = before
    other.poller.poll_now()  # PostgreSQL says that it is valid, and was asked later
    assert other.find(key.digest) is not None


def test_a_new_process_takes_a_key_without_postgres(issue: Callable[[str], ApiKey], postgres: ServerHandle) -> None:
    """With its limit; another key may be right, so it is a 503 and not called wrong."""
    set_limit(issue(KEY), rate_per_s=5, burst=20)
    _kept_by(KeyCopy())
    postgres.kill()
    try:
        client = directory.find(_digest(KEY))
        assert client is not None and client.scopes == {"score"} and client.limit == Limit(5, 20)
        with pytest.raises(DatabaseError):
            directory.find(_digest(OTHER))
        answer = Client(headers={"authorization": f"Bearer {OTHER}"}).get("/v1/models")
        assert (answer.status_code, answer.json()["code"]) == (503, "source_unavailable")
    finally:
        postgres.start()
        connections.close_all()
        for one in connections.all():
            one.close_pool()  # type: ignore[attr-defined]


def test_a_copy_of_longer_ago_is_worth_nothing(
    issue: Callable[[str], ApiKey], postgres: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ten minutes of an outage are counted on while no process runs."""
    issue(KEY)
    copy = KeyCopy()
    copy.poller.poll_now()
    copy._at -= KEPT_FOR_S
    copy._keep()
    postgres.kill()
    try:
        with pytest.raises(DatabaseError):
            directory.find(_digest(KEY))
    finally:
        postgres.start()
        connections.close_all()
        for one in connections.all():
            one.close_pool()  # type: ignore[attr-defined]


def test_the_thread_keeps_what_it_has_asked_for(issue: Callable[[str], ApiKey]) -> None:
    """By itself, from the first key on that a request brings."""
    issue(KEY)
    assert Client(headers={"authorization": f"Bearer {KEY}"}).get("/v1/models").status_code == 200
    kept: Any = None

    def is_kept() -> bool:
        nonlocal kept
        kept = keys_copy().load()
        return kept is not None

    until(is_kept)
    assert [key.digest for key in kept.content] == [_digest(KEY)]
