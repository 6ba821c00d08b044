"""Processes that write, through the application's ways and past them; each is one session.

A write's number is in its value, so that bytes say which write they are from. Before its commit each write notes its
version and content, so nothing that ever becomes visible is unknown to the verdict.

Of the writes after which somebody has to be told, a twentieth end without it, as if the process had been killed between
commit and invalidation; some of them are (`CRASHED`), the others only leave it out, because a new process is a tenth of
a second of one processor.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import psycopg
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg.conninfo import make_conninfo

from features import ingest
from features.checker.history import NO_CONTENT, Event, ReadLog, Way, WriteLog, now_ns
from features.checker.keyspace import AROUND, GROUPS, PROFILE, THROUGH, Keyspace, content_of, values_of
from features.checker.phase import Phase, PhaseByte
from features.checker.run_file import RunFile
from features.checker.sessions import Session, watch_for_unproven
from features.models import FeatureRow, TtlPolicy
from features.policies import policies_in_force
from features.writes import drop_copies, write_leases, write_through
from mlserve.cache.clock import SystemClock
from mlserve.cache.keys import Key
from mlserve.cache.wiring import engine

CRASHED = 77
"""Exit code of a writer that ended itself between commit and invalidation."""
UNTOLD_SHARE = 0.05
CRASH_SHARE = 0.004
ROLLBACK_SHARE = 0.05
READ_BACK_SHARE = 0.1
HOT_SHARE = 0.2
"""Of the keys; they get `HOT_WRITES` of the writes. The others are quiet enough to be found in the cache."""
HOT_WRITES = 0.9
SESSIONS_FROM = 1_000_000
"""Readers number theirs below."""
DAY_ZERO = datetime(1980, 1, 1, tzinfo=UTC)
DAYS_PER_SECOND = 20.0
"""In which the ledger's time passes, so that a customer's recent history, 31 days, stays a handful of transactions."""
_LOCK_WAIT = "2s"
_PAUSE_AFTER_ERROR_S = 0.05

_UPSERT = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES (%s, %s, %s, now())
ON CONFLICT ("group", entity_id)
DO UPDATE SET "values" = excluded."values", as_of = excluded.as_of, deleted_at = NULL
RETURNING version
"""


class _Row(NamedTuple):
    """One key as a transaction is about to leave it."""

    key: Key
    version: int
    content: int


class _RolledBack(Exception):
    """On purpose."""


class Writer:
    """Of one process."""

    def __init__(self, run: RunFile, *, process: int, numbers_from: int) -> None:
        self.number = numbers_from
        self._began_ns = run.began_ns
        self.keyspace = Keyspace(run.keys)
        self.chance = random.Random(f"{run.seed} writer {process}")
        self._log = WriteLog(run.logs / f"writer-{process}.writes", process)
        reads = ReadLog(run.logs / f"writer-{process}.reads", process).buffer()
        self.session = Session(SESSIONS_FROM + process, self.keyspace, reads, with_token=True)
        self.latest: list[Key] = []
        """Keys of the last write that was acknowledged."""
        self._raw: psycopg.Connection[Any] | None = None

    def note(self, event: Event, way: Way, number: int, rows: Sequence[_Row]) -> None:
        for row in rows:
            self._log.note(
                event,
                way,
                key=self.keyspace.place[row.key],
                session=self.session.number,
                number=number,
                version=row.version,
                content=row.content,
            )
            if event is Event.ACKED:
                self.session.wrote(row.key, row.version)
        if event is Event.ACKED and rows:
            self.latest = [row.key for row in rows]

    def write_once(self) -> None:
        """One transaction by a way that chance chooses. Raises database errors; then nobody knows."""
        self.number += 1
        ways = (self._sql, self._orm_save, self._orm_bulk, self._through, self._around, self._delete)
        chosen = self.chance.choices(ways, weights=(34, 12, 4, 28, 17, 5))[0]
        chosen(self.number)

    # --- the ways ---

    def _sql(self, number: int) -> None:
        self._in_raw_transaction(Way.SQL, number, lambda cursor: self._upsert(cursor, self._row_key(), number))

    def _orm_save(self, number: int) -> None:
        key = self._row_key()

        def write() -> list[_Row]:
            row = FeatureRow(pk=(key.group, key.id), values=values_of(key.group, number), as_of=_now())
            row.save(force_update=True, update_fields=["values", "as_of"])
            return self._as_written([key])

        self._in_django_transaction(Way.ORM_SAVE, number, write)

    def _orm_bulk(self, number: int) -> None:
        """Three rows of one group in one statement."""
        group = self.chance.choice((AROUND, PROFILE))
        ids = sorted(self.chance.sample(self.keyspace.merchants, min(3, len(self.keyspace.merchants))))

        def write() -> list[_Row]:
            chosen = FeatureRow.objects.filter(group=group, entity_id__in=ids)
            list(chosen.order_by("entity_id").select_for_update())  # in one order, so that nobody waits in a circle
            chosen.update(values=values_of(group, number), as_of=_now())
            return self._as_written([Key("merchant", entity_id, group) for entity_id in ids])

        self._in_django_transaction(Way.ORM_BULK, number, write)

    def _through(self, number: int) -> None:
        self._record(self._choose(self.keyspace.customers), number, Way.THROUGH)

    def _record(self, customer: str, number: int, way: Way) -> None:
        """As the recorder of decisions does it: ledger and activity in one transaction, leases before its commit."""
        new = ingest.NewTransaction(
            id=f"checked-{number}",
            occurred_at=DAY_ZERO + timedelta(days=DAYS_PER_SECOND * (now_ns() - self._began_ns) / 1e9),
            customer_id=customer,
            merchant_id=self.keyspace.merchants[0],
            amount=float(number % 10**9),
            currency="EUR",
        )
        rows: list[_Row] = []
        with transaction.atomic():
            recorded = ingest.record(connection.connection, [new], now=_now())
            leases = write_leases(recorded.activity)
            rows = [_Row(key, entry.version, content_of(entry.values)) for key, entry in recorded.activity.items()]
            self.note(Event.SENT, way, number, rows)
        self.note(Event.ACKED, way, number, rows)
        if way is Way.INITIAL or self._goes_on():
            write_through(recorded.activity, leases)

    def _around(self, number: int) -> None:
        key = self._row_key()
        self._in_raw_transaction(Way.AROUND, number, lambda cursor: self._upsert(cursor, key, number))
        if self._goes_on():
            drop_copies([key])

    def _delete(self, number: int) -> None:
        """Softly; the next write of this key brings it back."""
        key = self._row_key()

        def delete(cursor: Any) -> list[_Row]:
            cursor.execute(
                'UPDATE features_featurerow SET deleted_at = now() WHERE "group" = %s AND entity_id = %s '
                "RETURNING version",
                (key.group, key.id),
            )
            return [_Row(key, version, NO_CONTENT) for (version,) in cursor.fetchall()]

        self._in_raw_transaction(Way.DELETE, number, delete)

    # --- transactions ---

    def _in_raw_transaction(
        self, way: Way, number: int, work: Callable[[Any], list[_Row]], *, may_roll_back: bool = True
    ) -> None:
        raw = self._raw_connection()
        rolls_back = may_roll_back and self.chance.random() < ROLLBACK_SHARE
        try:
            with raw.cursor() as cursor:
                cursor.execute("BEGIN")
                rows = work(cursor)
                if rolls_back:
                    self.note(Event.ROLLED_BACK, way, number, rows)
                    cursor.execute("ROLLBACK")
                    return
                self.note(Event.SENT, way, number, rows)
                cursor.execute("COMMIT")
        except BaseException:
            self.close_raw()
            raise
        self.note(Event.ACKED, way, number, rows)

    def _in_django_transaction(self, way: Way, number: int, work: Callable[[], list[_Row]]) -> None:
        try:
            with transaction.atomic():
                rows = work()
                if self.chance.random() < ROLLBACK_SHARE:
                    self.note(Event.ROLLED_BACK, way, number, rows)
                    raise _RolledBack
                self.note(Event.SENT, way, number, rows)
        except _RolledBack:
            return
        self.note(Event.ACKED, way, number, rows)

    def write_first(self, key: Key, number: int) -> None:
        if key.group == THROUGH:
            self._record(key.id, number, Way.INITIAL)
        else:
            self._in_raw_transaction(
                Way.INITIAL, number, lambda cursor: self._upsert(cursor, key, number), may_roll_back=False
            )

    def hold_open(self, key: Key, number: int, seconds: float) -> None:
        """A transaction that writes, and commits so much later."""
        with self._raw_connection().cursor() as cursor:
            cursor.execute("BEGIN")
            rows = self._upsert(cursor, key, number)
            time.sleep(seconds)
            self.note(Event.SENT, Way.HELD, number, rows)
            cursor.execute("COMMIT")
        self.note(Event.ACKED, Way.HELD, number, rows)

    def _upsert(self, cursor: Any, key: Key, number: int) -> list[_Row]:
        values = values_of(key.group, number)
        cursor.execute(_UPSERT, (key.group, key.id, values))
        return [_Row(key, version, content_of(values)) for (version,) in cursor.fetchall()]

    def _as_written(self, keys: Sequence[Key]) -> list[_Row]:
        """Rows that this transaction has updated."""
        found = FeatureRow.objects.filter(group=keys[0].group, entity_id__in=[key.id for key in keys])
        rows = {row.entity_id: row for row in found}
        return [
            _Row(key, row.version, NO_CONTENT if row.deleted_at else content_of(row.values))
            for key in keys
            if (row := rows.get(key.id)) is not None
        ]

    def _raw_connection(self) -> psycopg.Connection[Any]:
        if self._raw is None:
            self._raw = psycopg.connect(_conninfo(), autocommit=True)
            self._raw.execute(f"SET lock_timeout = '{_LOCK_WAIT}'")
        return self._raw

    def close_raw(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()

    # --- chance ---

    def _goes_on(self) -> bool:
        """Whether this process lives to tell the cache."""
        chance = self.chance.random()
        if chance < CRASH_SHARE:
            self.session.flush()
            os._exit(CRASHED)
        return chance >= UNTOLD_SHARE

    def _row_key(self) -> Key:
        merchant = self._choose(self.keyspace.merchants)
        return Key("merchant", merchant, self.chance.choice((AROUND, PROFILE)))

    def _choose(self, ids: Sequence[str]) -> str:
        hot = max(1, round(len(ids) * HOT_SHARE))
        if len(ids) > hot and self.chance.random() >= HOT_WRITES:
            return ids[self.chance.randrange(hot, len(ids))]
        return ids[self.chance.randrange(hot)]


def write_for_as_long_as_it_runs(run: RunFile, *, process: int, numbers_from: int, per_second: float) -> None:
    """Until writers are told to end. `numbers_from`: a million numbers from there are this process's own."""
    phase = PhaseByte(run.phase_file)
    engine()
    watch_for_unproven()
    policies_in_force()
    writer = Writer(run, process=process, numbers_from=numbers_from)
    due = time.monotonic()
    while phase.phase is Phase.RUNNING:
        try:
            writer.write_once()
            if writer.latest and writer.chance.random() < READ_BACK_SHARE:
                writer.session.read(writer.latest)
        except (DatabaseError, InterfaceError, psycopg.Error):
            connection.close()
            writer.close_raw()
            time.sleep(_PAUSE_AFTER_ERROR_S)
        # Behind schedule after a pause of the servers: not to be made up for.
        due = max(due + writer.chance.uniform(0.5, 1.5) / per_second, time.monotonic() - 0.1)
        time.sleep(max(0.0, due - time.monotonic()))
    writer.session.flush()


def hold_a_transaction_open(run: RunFile, *, process: int, numbers_from: int, seconds: float) -> None:
    """Fails if the transaction does."""
    writer = Writer(run, process=process, numbers_from=numbers_from)
    writer.hold_open(writer.chance.choice(writer.keyspace.held), numbers_from, seconds)


def populate(run: RunFile, *, process: int) -> None:
    """The policies and a first row for each key."""
    TtlPolicy.objects.filter(name__in=GROUPS).update(
        freshness=TtlPolicy.Freshness.PROVEN if run.proven else TtlPolicy.Freshness.TTL,
        fresh_for_s=24 * 3600,
        grace_s=24 * 3600,
        negative_ttl_s=24 * 3600,
        use_l1=True,
        use_l2=True,
    )
    writer = Writer(run, process=process, numbers_from=0)
    for number, key in enumerate(writer.keyspace.keys):
        writer.write_first(key, number)


def _now() -> datetime:
    return datetime.fromtimestamp(SystemClock.now(), UTC)


def _conninfo() -> str:
    known = cast(DatabaseWrapper, connection).get_connection_params()
    wanted = ("dbname", "user", "password", "host", "port")
    return make_conninfo(**{name: known[name] for name in wanted if name in known})
