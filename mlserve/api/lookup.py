"""Which client a key belongs to, mostly without asking Postgres.

A key that was asked about less than `ASK_AFTER_S` ago is taken as it is. After that one request asks Postgres while the
others go on with what is known, for no longer than `FRESH_FOR_S` after the last question: then they wait for the answer
too, so that a key ends within a second of being revoked, however long Postgres takes. Only if Postgres does not answer
at all, a known key stays good for `KEPT_FOR_S` after it was last confirmed: an outage of the database must not become
one of scoring. Known are also keys that this process has not seen, or that were valid before it started
(`key_copy.py`). Unknown keys are remembered for a second too, so that a client with a wrong key cannot make a query of
every request; they can never push out known ones.
"""

import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final

import msgspec
from django.db import DatabaseError, InterfaceError, OperationalError

from mlserve.api.key_copy import key_copy
from mlserve.api.limit import Limit, limit_in_force
from mlserve.api.models import ApiKey
from mlserve.cache.breaker import State
from mlserve.cache.clock import SystemClock
from mlserve.cache.wiring import engine
from mlserve.postgres.failures import Failure, failure_of, stops_reads
from mlserve.postgres.sessions import Kind, session_of

FRESH_FOR_S: Final = 1.0
ASK_AFTER_S: Final = 0.5
KEPT_FOR_S: Final = 600.0
RETRY_AFTER_FAILURE_S: Final = 2.0
"""Time between tries while Postgres is away: each may wait that long for a connection."""
_MAX_ENTRIES: Final = 10_000
_FIELDS: Final = ("prefix", "name", "scopes", "rate_per_s", "burst")


class ApiClient(msgspec.Struct, frozen=True, gc=False):
    """Who calls. `id` is the key's prefix: safe to log and to keep with a decision."""

    id: str
    name: str
    scopes: frozenset[str]
    limit: Limit | None = None

    @property
    def is_authenticated(self) -> bool:
        """REST framework asks it of every user."""
        return True


class _Known(msgspec.Struct, gc=False):
    client: ApiClient
    confirmed_at: float
    """When Postgres was asked: what it said may have been over by the time that it was heard."""
    ask_again_at: float
    wait_from: float
    """From then on nobody goes on without asking."""
    asking: threading.Lock


class Kept(msgspec.Struct, frozen=True, gc=False):
    """A client that is known although Postgres does not answer. `age_s`: since it was last confirmed."""

    client: ApiClient
    age_s: float


class KeyDirectory:
    """Looks keys up by digest. Thread-safe. `load` returns None for a key that is unknown or revoked.

    `kept` says who is known without asking Postgres; `revoked` is told of keys that are not valid.
    """

    def __init__(
        self,
        *,
        load: Callable[[str], ApiClient | None],
        clock: Callable[[], float],
        max_entries: int = _MAX_ENTRIES,
        kept: Callable[[str], Kept | None] = lambda _digest: None,
        revoked: Callable[[str], None] = lambda _digest: None,
    ) -> None:
        self._load = load
        self._kept = kept
        self._revoked = revoked
        self._clock = clock
        self._max_entries = max_entries
        self._known: dict[str, _Known] = {}
        self._unknown_until: dict[str, float] = {}

    def find(self, digest: str) -> ApiClient | None:
        """The client, or None if the key is not valid. Raises Django's `DatabaseError` or `InterfaceError` if

        Postgres does not answer and the key was not confirmed within the last `KEPT_FOR_S`.
        """
        now = self._clock()
        known = self._known.get(digest)
        if known is None:
            return None if self._unknown_until.get(digest, now) > now else self._ask_or_remember(digest)
        if known.ask_again_at > now:
            return known.client
        kept = known.confirmed_at + KEPT_FOR_S > now
        if not known.asking.acquire(blocking=not kept or known.wait_from <= now):
            return known.client
        try:
            newer = self._known.get(digest)
            if newer is not known or known.ask_again_at > self._clock():  # somebody asked while this one waited
                return self.find(digest)
            return self._ask(digest)
        except (DatabaseError, InterfaceError):
            if not kept:
                raise
            known.ask_again_at = known.wait_from = self._clock() + RETRY_AFTER_FAILURE_S
            return known.client
        finally:
            known.asking.release()

    def forget(self) -> None:
        """Drops everything, so that the next look-ups ask Postgres."""
        self._known.clear()
        self._unknown_until.clear()

    def _ask_or_remember(self, digest: str) -> ApiClient | None:
        """Of a key that this directory does not know."""
        try:
            return self._ask(digest)
        except (DatabaseError, InterfaceError):
            kept = self._kept(digest)
            if kept is None or kept.age_s >= KEPT_FOR_S:
                raise
            now = self._clock()
            ask_at = now + RETRY_AFTER_FAILURE_S
            self._remember(digest, _Known(kept.client, now - kept.age_s, ask_at, ask_at, threading.Lock()))
            return kept.client

    def _ask(self, digest: str) -> ApiClient | None:
        now = self._clock()
        client = self._load(digest)
        if client is None:
            self._known.pop(digest, None)
            _make_room(self._unknown_until, self._max_entries)
            self._unknown_until[digest] = now + FRESH_FOR_S
            self._revoked(digest)
        else:
            self._unknown_until.pop(digest, None)
            self._remember(digest, _Known(client, now, now + ASK_AFTER_S, now + FRESH_FOR_S, threading.Lock()))
        return client

    def _remember(self, digest: str, known: _Known) -> None:
        _make_room(self._known, self._max_entries)
        self._known[digest] = known


def _make_room(entries: dict[str, Any], max_entries: int) -> None:
    while len(entries) >= max_entries:
        # Other threads may take the same oldest entry, or change the table meanwhile: then it is tried again.
        try:
            entries.pop(next(iter(entries)), None)
        except (RuntimeError, StopIteration):
            continue


def _load(digest: str) -> ApiClient | None:
    key_copy.poller.ensure_started()
    breaker = engine().l3_breaker
    if breaker.state is not State.CLOSED:
        raise OperationalError("Postgres did not answer a moment ago; its breaker is open")
    try:
        with session_of(Kind.REQUEST):
            row = ApiKey.objects.filter(digest=digest, revoked_at=None).values_list(*_FIELDS).first()
    except (DatabaseError, InterfaceError) as error:
        failure = failure_of(error)
        if stops_reads(failure):  # found out at the price of a wait for a connection: nobody else needs to
            breaker.failure(timed_out=failure is not Failure.INCOMPATIBLE)
        raise
    if row is None:
        return None
    return _client(*row)


def _kept(digest: str) -> Kept | None:
    found = key_copy.find(digest)
    if found is None:
        return None
    key = found.key
    client = _client(key.prefix, key.name, key.scopes, key.rate_per_s, key.burst)
    return Kept(client, max(0.0, SystemClock.now() - found.at))


def _client(prefix: str, name: str, scopes: Iterable[str], per_s: int | None, burst: int | None) -> ApiClient:
    return ApiClient(prefix, name, frozenset(scopes), limit_in_force(per_s=per_s, burst=burst))


directory: Final = KeyDirectory(load=_load, clock=monotonic, kept=_kept, revoked=key_copy.revoke)
"""This process's directory."""
