"""Which customers and merchants exist, as far as the cache is concerned: the filters behind `membership()`.

An entity exists if Postgres has a feature row of it, deleted or not, or a transaction in the ledger. Filters are built
from both (`build`), and whoever inserts a feature row of a new entity announces it before the commit (`announce`).

Between the two no id may fall. The build notes where announcements stand, and reads Postgres after that; but a writer
that announced before the note may commit after the read. So between note and read the build waits for every database
transaction that had written anything by the time of the note, as CREATE INDEX CONCURRENTLY does. Writers announce after
they have written, so each is waited for or announces behind the note.
"""

import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from django.conf import settings
from django.db import connection, transaction

from features.definitions import GROUPS_OF_ENTITY
from mlserve.cache.bloom import MOST_BYTES, Answer, BloomMembership, IdFilter
from mlserve.cache.bloom_follower import Event, Follower
from mlserve.cache.bloom_generation import Generation, Header, encode, hash_key
from mlserve.cache.bloom_redis import BloomStore
from mlserve.cache.breaker import State
from mlserve.cache.clock import Clock, SystemClock
from mlserve.cache.wiring import engine, l2_client
from mlserve.observability import metrics
from mlserve.poller import Poller

POLL_INTERVAL_S = 0.5
WRITERS_WAIT_S = 60.0
"""How long a build waits for transactions that are under way; a build of features holds one for less."""
_IDS_PER_TRIP = 10_000
_LEDGER_COLUMN = {"customer": "customer_id", "merchant": "merchant_id"}


class BuildFailed(Exception):
    """There is no new generation; the one before stays. The message says why."""


class Built(msgspec.Struct, frozen=True):
    """`counts` and `bytes` per kind. `waited_s`: for writers that were under way."""

    generation: str
    counts: dict[str, int]
    bytes: dict[str, int]
    waited_s: float
    seconds: float


def membership() -> BloomMembership:
    """Of this process, kept current by a poller that this call starts; usable within a second if there are filters."""
    process = _of_this_process()
    process.poller.ensure_started()
    return process.follower.membership


def announce(ids: Mapping[str, Sequence[str]]) -> None:
    """Entities (kind to ids) of which this database transaction has just inserted rows, before its commit.

    Never raises; costs one trip to Redis if there are any. What Redis could not be told follows from this process.
    """
    ids = {kind: of_kind for kind, of_kind in ids.items() if of_kind}
    if ids:
        process = _of_this_process()
        if not process.follower.announce(ids):
            process.poller.ensure_started()


def distrust() -> None:
    """All filters of all processes are unusable until the next build: they were made of another database.

    Raises StoreUnreachable.
    """
    BloomStore(l2_client).end_stream()


def problem() -> str | None:
    """Why this process's filters are unusable, or why it did not take over the newest generation."""
    return _of_this_process().follower.problem


def build(*, clock: Clock, writers_wait_s: float = WRITERS_WAIT_S) -> Built:
    """Filters of all ids that exist, saved for every process. Two at once do no harm.

    Not for use within a database transaction, whose end it would wait for. Raises BuildFailed, StoreUnreachable and
    Django's database errors; nothing is changed then.
    """
    if connection.in_atomic_block:
        raise BuildFailed("a build of filters cannot be part of a database transaction")
    started = clock.monotonic()
    store, name = BloomStore(l2_client), secrets.token_hex(16)
    position = store.begin(now=clock.now())
    waited_s = _wait_for_writers(clock, writers_wait_s)
    key = hash_key(name, _secret())
    with _snapshot() as cursor:
        counted = {kind: _filter_of(cursor, kind, key) for kind in _LEDGER_COLUMN}
    generation = Generation(
        name=name,
        built_at=clock.now(),
        position=position,
        counts={kind: count for kind, (count, _) in counted.items()},
        filters={kind: held for kind, (_, held) in counted.items()},
    )
    sizes = {kind: len(held.dump()) for kind, held in generation.filters.items()}
    if max(sizes.values()) > MOST_BYTES:
        raise BuildFailed(f"filters of {sizes} bytes; at most {MOST_BYTES} are allowed")
    store.save(encode(generation, _secret()), name)
    return Built(
        generation=name,
        counts=dict(generation.counts),
        bytes=sizes,
        waited_s=waited_s,
        seconds=clock.monotonic() - started,
    )


def newest_generation() -> Header | None:
    """What is saved; None if nothing is. Raises UnusableFilter and StoreUnreachable."""
    return BloomStore(l2_client).header(_secret())


def forget() -> None:
    """Stops the poller of this process and drops its filters; the next `membership()` begins anew."""
    global _process
    with _lock:
        if _process is not None:
            _process.poller.stop()
        _process = None


class _Process:
    """The follower of this process and its poller."""

    def __init__(self) -> None:
        clock = SystemClock()
        self.follower = Follower(
            membership=BloomMembership(clock),
            store=BloomStore(l2_client),
            clock=clock,
            secret=_secret(),
            reachable=lambda: engine().l2_breaker.state is State.CLOSED,
        )
        self.poller = Poller("bloom", POLL_INTERVAL_S, self._poll)
        self._published_answers: dict[tuple[str, Answer], int] = {}
        self._published_events: dict[Event, int] = {}

    def _poll(self) -> None:
        try:
            self.follower.poll()
        finally:
            self._publish()

    def _publish(self) -> None:
        answers = self.follower.membership.answers
        for (kind, answer), count in answers.items():
            metrics.BLOOM_ANSWERS.labels(kind, answer).inc(count - self._published_answers.get((kind, answer), 0))
        events = dict(self.follower.events)
        for event, count in events.items():
            metrics.BLOOM_EVENTS.labels(event).inc(count - self._published_events.get(event, 0))
        self._published_answers, self._published_events = answers, events
        metrics.BLOOM_USABLE.set(self.follower.membership.usable)


_lock = threading.Lock()
_process: _Process | None = None


def _of_this_process() -> _Process:
    global _process
    process = _process
    if process is None:
        with _lock:
            process = _process = _process or _Process()
    return process


def _forget_after_fork() -> None:
    global _process, _lock
    _process, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)


def _secret() -> bytes:
    return settings.SECRET_KEY.encode()


def _wait_for_writers(clock: Clock, patience_s: float) -> float:
    """Until every transaction that had written by now has ended; how long that took."""
    started = clock.monotonic()
    with connection.cursor() as cursor:
        # A number of our own: whoever wrote before has a smaller one.
        cursor.execute("SELECT pg_current_xact_id()::text")
        mark = cursor.fetchone()[0]
        pause_s = 0.01
        while True:
            cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8", (mark,))
            waited_s = clock.monotonic() - started
            if cursor.fetchone()[0]:
                return waited_s
            if waited_s >= patience_s:
                raise BuildFailed(
                    f"a database transaction has been writing for more than {patience_s:g} s, and what it commits "
                    "could be missing from the filters; pg_stat_activity shows it"
                )
            clock.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)


@contextmanager
def _snapshot() -> Iterator[Any]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield cursor


def _filter_of(cursor: Any, kind: str, key: bytes) -> tuple[int, IdFilter]:
    """How many ids of this kind there are, and all of them in a filter. The ids stay in Postgres, counted first."""
    column = _LEDGER_COLUMN[kind]
    groups = [group.name for group in GROUPS_OF_ENTITY[kind]]
    cursor.execute(
        f"""
        DECLARE existing SCROLL CURSOR FOR
        SELECT entity_id FROM features_featurerow WHERE "group" = ANY(%s)
        UNION SELECT {column} FROM features_transaction
        """,
        (groups,),
    )
    cursor.execute("MOVE FORWARD ALL IN existing")
    count: int = cursor.rowcount
    held = IdFilter.for_count(count, key)
    cursor.execute("MOVE ABSOLUTE 0 IN existing")
    while True:
        cursor.execute(f"FETCH FORWARD {_IDS_PER_TRIP} FROM existing")
        ids = [row[0] for row in cursor.fetchall()]
        if not ids:
            break
        held.add_all(ids)
    cursor.execute("CLOSE existing")
    return count, held
