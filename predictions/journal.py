"""Makes decisions durable before they are acknowledged, many of them with one commit.

A request hands its decision over and waits. One thread per process takes all that are waiting and commits them
together: ledger, customers' activity and decisions in one database transaction. So a decision that was acknowledged
survives kill -9 of the process, and the price of durability, a flush of Postgres' log, is shared by all
requests of that moment (group commit: Gawlick and Kinkade 1985).

If Postgres does not take them, decisions go to a durable spool on this host (`spool.py`) and follow later. Those of a
customer whom somebody else has locked are held back, and no others (`locked.py`). Repeated transaction ids are found
out here, by the primary key: the stored answer is returned, also while PostgreSQL can only be read.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Collection, Mapping, Sequence, Set
from typing import ClassVar

import msgspec
import psycopg
import structlog
from django.db import DatabaseError, InterfaceError, connection, transaction

from features import ingest
from features.activity import Cursor, free_customers, load_rows
from features.definitions import CUSTOMER_ACTIVITY
from features.writes import write_leases, write_through
from mlserve.api.admission import step_aside
from mlserve.cache.breaker import State
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.wiring import engine
from mlserve.errors import ErrorCode, MlserveError
from mlserve.observability import metrics
from mlserve.postgres.failures import Failure, failure_of, sqlstate_of, stops_writes
from mlserve.postgres.sessions import Kind, session_of
from predictions import stored
from predictions.locked import LockedCustomers, by_customer
from predictions.messages import ScoreResponse
from predictions.spooled.known import Known
from predictions.spooling import AnswerAway, find_spooled, spool_decisions

_log = structlog.get_logger(__name__)
MOST_PER_COMMIT = 200
"""Reached, a commit takes in nobody else; what one request brings is not divided."""
MAX_LOCKS_IN_A_ROW = 2
"""Groups that wait for a lock; then it is on all of them, a whole table perhaps, and writes have to wait."""
LOOKS_AGAIN_AFTER_S = 1.0
"""Where a look for earlier decisions failed: each of them may take as long as a read may."""
WAIT_S = 5.0
"""Longest wait of a request for its commit; after that the client may ask again under the same id."""
Unavailable = (DatabaseError, InterfaceError)


class JournalEntry(msgspec.Struct, frozen=True):
    """A decision with everything that GET will show and that a repetition is compared with.

    `digest`: 32 bytes over the canonical request.
    """

    transaction: ingest.NewTransaction
    client: str
    digest: bytes
    model_version_id: int
    policy_version: int
    response: ScoreResponse


class Recorded(msgspec.Struct, frozen=True):
    """How it ended: `stored` is the earlier answer (JSON) if this id was decided before; `spooled`: not in Postgres.

    `activity_version`: from which version on the customer's activity has this transaction; 0 if Postgres has not said.
    """

    stored: bytes | None = None
    spooled: bool = False
    activity_version: int = 0


class TransactionConflict(MlserveError):
    """The id was used before for a transaction with other contents."""

    code: ClassVar[ErrorCode] = ErrorCode.TRANSACTION_CONFLICT


def conflict_with_ledger(transaction_id: str) -> TransactionConflict:
    """It was imported, or its decision is older than what is kept."""
    return TransactionConflict(
        f"transaction {transaction_id} is in the ledger with another time, customer, merchant, amount or currency; "
        "a new transaction needs a new transaction_id"
    )


def conflict_with_decision(transaction_id: str) -> TransactionConflict:
    """It was scored."""
    return TransactionConflict(
        f"transaction {transaction_id} was scored before with other contents; "
        "a new transaction needs a new transaction_id"
    )


class JournalTimeout(MlserveError):
    """The commit did not come back in time; whether the decision stands is unknown until the id is asked for again."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE
    retry_after_s: ClassVar[int | None] = 1


class _Waiting:
    """One request's place in the queue."""

    __slots__ = ("_done", "entry", "error", "held_since", "recorded")

    def __init__(self, entry: JournalEntry) -> None:
        self.entry = entry
        self.recorded: Recorded | None = None
        self.error: MlserveError | None = None
        self.held_since: float | None = None
        self._done = threading.Lock()
        self._done.acquire()

    @property
    def customer_id(self) -> str:
        return self.entry.transaction.customer_id

    @property
    def is_finished(self) -> bool:
        return self.recorded is not None or self.error is not None

    def finish(self, outcome: Recorded | MlserveError) -> None:
        if isinstance(outcome, Recorded):
            self.recorded = outcome
        else:
            self.error = outcome
        self._done.release()

    def result(self, timeout_s: float) -> Recorded:
        if not self._done.acquire(timeout=timeout_s):
            raise JournalTimeout(
                f"the decision on transaction {self.entry.transaction.id} was not stored within {WAIT_S:g} s; "
                "send the same request again to learn whether it stands"
            )
        if self.error is not None:
            raise self.error
        assert self.recorded is not None
        return self.recorded


class Journal:
    """Of one process. Thread-safe; the thread starts with the first entry."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Sequence[_Waiting] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def record(self, entry: JournalEntry) -> Recorded:
        """Returns when the decision is durable. Raises TransactionConflict, JournalTimeout or `spool.SpoolFailed`."""
        waiting = _Waiting(entry)
        self._hand_over((waiting,))
        return waiting.result(WAIT_S)

    def record_many(self, entries: Sequence[JournalEntry]) -> list[Recorded | MlserveError]:
        """How each ended, in their order, when all are durable or refused. One commit, perhaps with others' entries.

        Of entries with one transaction id the first counts; later ones are repetitions or conflicts.
        """
        waiting = [_Waiting(entry) for entry in entries]
        if waiting:
            self._hand_over(waiting)
        monotonic = engine().clock.monotonic
        until = monotonic() + WAIT_S
        outcomes: list[Recorded | MlserveError] = []
        for each in waiting:
            try:
                outcomes.append(each.result(max(0.0, until - monotonic())))
            except MlserveError as error:
                outcomes.append(error)
        return outcomes

    def _hand_over(self, waiting: Sequence[_Waiting]) -> None:
        if self._thread is None:
            self._start()
        self._queue.put(waiting)
        step_aside()

    def stop(self) -> None:
        """Returns when all that was handed over is finished and the thread has ended with its connection."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        writer = _Writer()
        with session_of(Kind.JOURNAL):
            while (batch := self._next(writer.wait_s)) is not None:
                try:
                    writer.write(batch)
                except Exception as error:
                    _log.exception("journal_failed")
                    refusal = MlserveError(f"the decision could not be stored: {type(error).__name__}")
                    for waiting in (*batch, *writer.locked.give_up()):
                        if not waiting.is_finished:
                            waiting.finish(refusal)
            writer.give_up()
        connection.close()

    def _next(self, wait_s: float | None) -> list[_Waiting] | None:
        """All that waits in the queue, up to a commit's size; nothing if none comes within `wait_s`. None: the end."""
        try:
            first = self._queue.get(timeout=wait_s)
        except queue.Empty:
            return []
        if first is None:
            return None
        batch = list(first)
        with contextlib.suppress(queue.Empty):
            while len(batch) < MOST_PER_COMMIT:
                following = self._queue.get_nowait()
                if following is None:
                    self._queue.put(None)
                    break
                batch.extend(following)
        return batch


class _Writer:
    """What the journal's thread does with what it takes: into PostgreSQL, or to the spool, or held back for a lock."""

    def __init__(self) -> None:
        self.locked: LockedCustomers[_Waiting] = LockedCustomers()
        self._monotonic = engine().clock.monotonic
        self._breaker = engine().l3_write_breaker
        self._why = ""
        self._looks_from = 0.0

    @property
    def wait_s(self) -> float | None:
        """Until when there is something to do although nothing comes."""
        return self.locked.wait_s(now=self._monotonic())

    def write(self, batch: Sequence[_Waiting]) -> None:
        """Finishes all of them, now or in a later call, and those of earlier calls whose time has come."""
        ready: Sequence[_Waiting] = batch
        if self.locked:
            ready = self._without_locked(batch)
        if ready:
            self._store(ready)

    def give_up(self) -> None:
        """Finishes what is held back."""
        self._keep(self.locked.give_up())

    def _without_locked(self, batch: Sequence[_Waiting]) -> list[_Waiting]:
        ready, tired = self.locked.split(batch, now=self._monotonic())
        if self.wait_s == 0.0:
            free = self._free(self.locked.customers) if self._breaker.allow() else set()
            freed, more = self.locked.release(free, now=self._monotonic())
            ready, tired = freed + ready, more + tired
        self._keep(tired)
        return ready

    def _store(self, waiting: Sequence[_Waiting]) -> None:
        if not self._breaker.allow():
            self._keep(waiting)
            return
        waiting = _without_spooled(waiting)
        match self._try(waiting) if waiting else None:
            case Failure.CONTENTION:
                self._store_around_locks(waiting)
            case Failure.REJECTED:
                self._store_one_by_one([[each] for each in waiting])

    def _try(self, waiting: Sequence[_Waiting]) -> Failure | None:
        """None when all are finished, by a commit or by the spool; else why they are not: REJECTED or CONTENTION."""
        try:
            outcomes = _commit_on_live_connection([each.entry for each in waiting])
        except Unavailable as error:
            connection.close()
            failure = failure_of(error)
            if failure in (Failure.REJECTED, Failure.CONTENTION):
                self._breaker.success()  # it works, for others
                self._why = str(error)
                return failure
            _log.warning("journal_spools", why=str(failure), sqlstate=sqlstate_of(error), decisions=len(waiting))
            note_failed_write(failure)
            self._keep(waiting)
            return None
        self._breaker.success()
        for each, outcome in zip(waiting, outcomes, strict=True):
            each.finish(outcome)
        return None

    def _store_around_locks(self, waiting: Sequence[_Waiting]) -> None:
        """Somebody holds what one of them needs: that one is found out and held back, the others are stored."""
        metrics.JOURNAL_CONTENTION.inc()
        free = self._free({each.customer_id for each in waiting})
        self._hold([each for each in waiting if each.customer_id not in free])
        rest = [each for each in waiting if each.customer_id in free]
        if rest and self._try(rest) is not None:  # no lock on a customer: on a row of the ledger, or on a table
            self._store_one_by_one(by_customer(rest))

    def _store_one_by_one(self, groups: Sequence[list[_Waiting]]) -> None:
        """Each group stands or falls for itself."""
        in_vain = 0
        for group in groups:
            if not self._breaker.allow():
                self._keep(group)
                continue
            match self._try(group):
                case Failure.CONTENTION:
                    in_vain += 1
                    self._hold(group)
                    if in_vain == MAX_LOCKS_IN_A_ROW:
                        self._breaker.failure(timed_out=True)
                case Failure.REJECTED if len(group) == 1:
                    _refuse(group[0], why=self._why)
                case Failure.REJECTED:
                    self._store_one_by_one([[each] for each in group])
                case None:
                    in_vain = 0

    def _keep(self, waiting: Sequence[_Waiting]) -> None:
        """In the spool, but for those that were decided before, as far as PostgreSQL can be read: they are answered."""
        earlier = self._decided_before(waiting) if waiting else {}
        new = [each for each in waiting if each.entry.transaction.id not in earlier]
        for each in waiting:
            if known := earlier.get(each.entry.transaction.id):
                each.finish(_compare(each.entry, known))
        for each, outcome in zip(new, _spool([each.entry for each in new]), strict=True):
            each.finish(outcome)

    def _decided_before(self, waiting: Sequence[_Waiting]) -> dict[str, tuple[bytes, bytes]]:
        now = self._monotonic()
        if now < self._looks_from or engine().l3_breaker.state is not State.CLOSED:
            return {}
        try:
            with session_of(Kind.REQUEST), connection.cursor() as cursor:
                return _stored(cursor, [each.entry for each in waiting])
        except Unavailable as error:
            connection.close()
            _log.warning("journal_cannot_look", sqlstate=sqlstate_of(error), decisions=len(waiting))
            self._looks_from = now + LOOKS_AGAIN_AFTER_S
            return {}

    def _hold(self, waiting: Sequence[_Waiting]) -> None:
        self._keep(self.locked.hold(waiting, now=self._monotonic()))

    def _free(self, customers: Collection[str]) -> set[str]:
        """Those that nobody holds at this moment; none if PostgreSQL does not say."""
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                return free_customers(cursor, customers)
        except Unavailable as error:
            connection.close()
            note_failed_write(failure_of(error))
            return set()


def note_failed_write(failure: Failure) -> None:
    """Tells the breakers what a write has found out."""
    if stops_writes(failure):
        cache = engine()
        certain = failure in (Failure.TIMEOUT, Failure.READ_ONLY)
        cache.l3_write_breaker.failure(timed_out=certain)
        if failure in (Failure.UNAVAILABLE, Failure.TIMEOUT):  # reads as well, as far as anybody knows: they are probed
            cache.l3_breaker.failure(timed_out=certain)


def _refuse(waiting: _Waiting, *, why: str) -> None:
    transaction_id = waiting.entry.transaction.id
    _log.error("decision_refused", transaction_id=transaction_id, error=why)
    waiting.finish(MlserveError(f"the decision on transaction {transaction_id} could not be stored"))


def _commit_on_live_connection(entries: Sequence[JournalEntry]) -> list[Recorded | MlserveError]:
    """A connection that Postgres has closed since the last commit is found out by its use: then one more, on a new one.

    To commit twice does no harm, should the first have gone through after all.
    """
    used_before = connection.connection is not None
    try:
        return commit(entries)
    except Unavailable as error:
        connection.close()
        failure = failure_of(error)
        if failure is Failure.SESSION or (used_before and failure is Failure.UNAVAILABLE):
            return commit(entries)
        raise


def commit(entries: Sequence[JournalEntry]) -> list[Recorded | MlserveError]:
    """One database transaction for all of them, then the new activity written through. Raises database errors.

    It waits four times: for PostgreSQL's answers, for the leases, for the commit and for L2.
    """
    clock = engine().clock
    started = clock.monotonic()
    first = {entry.transaction.id: entry for entry in reversed(entries)}
    unique = sorted(first.values(), key=lambda entry: entry.transaction.id)
    with transaction.atomic(), connection.wrap_database_errors:
        session: ingest.Session = connection.connection
        with session.pipeline():  # one wait for all that most commits need
            recording = ingest.Recording(
                session,
                [entry.transaction for entry in unique],
                max(entry.response.decided_at for entry in unique),
            )
            insertion = _insert(session, unique)
        recorded = recording.finish()
        added = {row[0] for row in insertion.fetchall()}
        with psycopg.Cursor(session) as cursor:
            if refused := recorded.conflicts & added:
                cursor.execute("DELETE FROM predictions_decision WHERE transaction_id = ANY(%s)", (list(refused),))
                added -= refused
            # A later entry of the batch with the same id is a repetition of the first.
            repeated = [entry for entry in entries if first[entry.transaction.id] is not entry]
            known = [entry for entry in unique if entry.transaction.id not in added]
            earlier = _stored(cursor, known + repeated) if known or repeated else {}
            customers = {entry.transaction.customer_id for entry in unique}
            versions = _activity_versions(cursor, recorded.activity, customers)
        leases = write_leases(recorded.activity)
    write_through(recorded.activity, leases)
    metrics.JOURNAL_COMMIT.observe(clock.monotonic() - started)
    metrics.JOURNAL_BATCH.observe(len(entries))
    return [
        Recorded(activity_version=versions.get(entry.transaction.customer_id, 0))
        if first[entry.transaction.id] is entry and entry.transaction.id in added
        else _compare(
            entry,
            earlier.get(entry.transaction.id),
            activity_version=versions.get(entry.transaction.customer_id, 0),
        )
        for entry in entries
    ]


def _activity_versions(cursor: Cursor, written: Mapping[Key, Entry], customers: Set[str]) -> dict[str, int]:
    """Of each customer. Those who had nothing new are asked for: in a repetition the transaction is in there already.

    While the customers are locked: what is read here is as new as whatever was acknowledged for them.
    """
    versions = {key.id: entry.version for key, entry in written.items()}
    others = customers - versions.keys()
    if others:
        rows = load_rows(cursor, [(CUSTOMER_ACTIVITY.name, customer_id) for customer_id in others]).rows
        versions |= {row.entity_id: row.version for row in rows}
    return versions


def stored_response(transaction_id: str) -> bytes | None:
    """The stored answer with features and trace (JSON), None if there is none. Raises Django's database errors."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT response FROM predictions_decision WHERE transaction_id = %s", (transaction_id,))
        row = cursor.fetchone()
    return stored.unpack(row[0]) if row else None


def _spool(entries: Sequence[JournalEntry]) -> Sequence[Recorded | MlserveError]:
    return [
        kept
        if isinstance(kept, MlserveError)
        else Recorded(spooled=True)
        if kept.earlier is None
        else _compare_with_spooled(entry, kept.earlier)
        for entry, kept in zip(entries, spool_decisions(entries), strict=True)
    ]


def _without_spooled(waiting: Sequence[_Waiting]) -> Sequence[_Waiting]:
    """Those whose ids no decision in the spool has. The others are finished: that decision stands, and will be stored.

    Without this a repetition that comes after PostgreSQL and before the delivery would be decided once more.
    """
    spooled = find_spooled([each.entry for each in waiting])
    if not spooled:
        return waiting
    for each in waiting:
        if earlier := spooled.get(each.entry.transaction.id):
            each.finish(_compare_with_spooled(each.entry, earlier))
    return [each for each in waiting if each.entry.transaction.id not in spooled]


def _compare_with_spooled(entry: JournalEntry, earlier: Known) -> Recorded | MlserveError:
    if earlier.response is None and earlier.digest == entry.digest:
        return AnswerAway(entry.transaction.id)
    return _compare(entry, (earlier.digest, earlier.response or b""))


def _insert(session: ingest.Session, entries: Sequence[JournalEntry]) -> "psycopg.Cursor[tuple[str]]":
    """Answers with the ids that had no decision before. May be sent only, if the session is in pipeline mode."""
    rows = [
        {
            "transaction_id": entry.transaction.id,
            "client": entry.client,
            "request_digest": entry.digest.hex(),
            "model_version_id": entry.model_version_id,
            "policy_version": entry.policy_version,
            "score": entry.response.score,
            "decision": entry.response.decision,
            "degraded": entry.response.degraded,
            "cold_start": entry.response.cold_start is True,
            "response": stored.pack(msgspec.json.encode(entry.response)).hex(),
            "decided_at": entry.response.decided_at,
        }
        for entry in entries
    ]
    return psycopg.Cursor(session).execute(_INSERT, (msgspec.json.encode(rows),))


_INSERT = """
INSERT INTO predictions_decision (
    transaction_id, client, request_digest, model_version_id, policy_version,
    score, decision, degraded, cold_start, response, decided_at
)
SELECT transaction_id, client, decode(request_digest, 'hex'), model_version_id, policy_version,
       score, decision, degraded, cold_start, decode(response, 'hex'), decided_at
FROM json_to_recordset(convert_from(%b, 'UTF8')::json) AS given (
    transaction_id text, client text, request_digest text, model_version_id bigint, policy_version bigint,
    score float8, decision text, degraded boolean, cold_start boolean, response text, decided_at timestamptz
)
ON CONFLICT (transaction_id) DO NOTHING
RETURNING transaction_id
"""


def _stored(cursor: Cursor, entries: Sequence[JournalEntry]) -> dict[str, tuple[bytes, bytes]]:
    cursor.execute(
        "SELECT transaction_id, request_digest, response FROM predictions_decision WHERE transaction_id = ANY(%s)",
        ([entry.transaction.id for entry in entries],),
    )
    return {row[0]: (bytes(row[1]), bytes(row[2])) for row in cursor.fetchall()}


def _compare(
    entry: JournalEntry, earlier: tuple[bytes, bytes] | None, *, activity_version: int = 0
) -> Recorded | MlserveError:
    if earlier is None:
        return conflict_with_ledger(entry.transaction.id)
    digest, response = earlier
    if digest != entry.digest:
        return conflict_with_decision(entry.transaction.id)
    try:
        return Recorded(stored=stored.unpack(response), activity_version=activity_version)
    except stored.AnswerUnreadable as error:
        return error


_journal = Journal()


def journal() -> Journal:
    """The journal of this process."""
    return _journal


def forget() -> None:
    """Stops the journal of this process; the next `journal()` begins anew."""
    global _journal
    _journal.stop()
    _journal = Journal()


def _forget_after_fork() -> None:
    global _journal
    _journal = Journal()


os.register_at_fork(after_in_child=_forget_after_fork)
