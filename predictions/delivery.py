"""Brings spooled decisions into Postgres once it answers again, in every process that gives scores.

What PostgreSQL refuses must not block what comes after it. A chunk that is refused is halved until the decision is
found that is to blame; that one goes to the refused file and the rest is delivered. A decision whose customer somebody
else has locked is held for the next round. An outage ends the round: the next one begins with half as many, so that
one decision that PostgreSQL fails at, for whatever reason, is in the end alone, and held.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import structlog
from django.db import DatabaseError, InterfaceError, connection, transaction

from features.activity import free_customers
from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from mlserve.errors import MlserveError
from mlserve.observability import metrics
from mlserve.poller import Poller
from mlserve.postgres.failures import Failure, failure_of, sqlstate_of
from mlserve.postgres.sessions import Kind, session_of
from predictions import spool
from predictions.answers import is_same_answer
from predictions.journal import JournalEntry, Recorded, TransactionConflict, commit
from predictions.locked import by_customer
from predictions.messages import ScoreResponse
from predictions.models import Decision
from predictions.spooled.drain import Delivered, Fate, Plan, drain
from predictions.spooled.lines import Line
from predictions.spooled.refused import Refused, RefusedFiles, RefusedIsFull, refused_line

_log = structlog.get_logger(__name__)
INTERVAL_S = 1.0
MAX_LINES = 200
"""Of one commit: as many as the journal's."""
MAX_ROUND_S = 5.0
"""Then the rest is the next round's: a process that shall end waits for its round."""
MAX_LOCKS = 12
"""Commits of a chunk that end at somebody's lock: enough to find one decision among 200. More are no matter of single
decisions, and the round ends."""
REFUSED_PAUSE_S = 30.0
"""After the refused file could not be written: until then what PostgreSQL refuses is left alone."""
_Unavailable = (DatabaseError, InterfaceError)
_OF_THE_VALUES = (TypeError, ValueError, OverflowError, KeyError, AttributeError, RecursionError)
"""What Python says of values that no statement can be made of: a moment without a zone, a number that is none."""
_decoder = msgspec.json.Decoder(JournalEntry)


class Refusal(msgspec.Struct, frozen=True):
    """Why a line cannot be delivered. `kind`: `unreadable`, `rejected` (by PostgreSQL) or `conflict`."""

    kind: str
    reason: str
    sqlstate: str | None = None


class Attempt(msgspec.Struct):
    """What became of each line of a chunk. `error`: what ended the attempt before its end."""

    fates: list[Fate]
    refusals: dict[int, Refusal] = {}
    delivered: int = 0
    error: Exception | None = None


def deliver_spooled() -> int:
    """Commit what waits on this host; return how many decisions left the spool, refused ones included.

    Raises database errors: what they concern stays spooled.
    """
    if engine().l3_write_breaker.state is not State.CLOSED or not spool.folder().exists():
        return 0
    return deliver_now()


def deliver_now() -> int:
    """The same, whatever this process thinks of PostgreSQL's health."""
    try:
        spool.keep_own_file()
    except OSError as error:  # its lines stay where they are; those of the other files can go
        _log.error("spool_file_not_kept", error=f"{type(error).__name__}: {error.strerror}")
    monotonic = engine().clock.monotonic
    until = monotonic() + MAX_ROUND_S
    plan = Plan(
        deliver=_deliver,
        max_lines=_chunk.lines,
        retry_refused=_refused_may_be_written(),
        is_over=lambda: monotonic() >= until,
    )
    settled = drain(plan)
    if settled:
        _log.info("spool_delivered", decisions=settled)
    return settled


def attempt(lines: Sequence[Line]) -> Attempt:
    """Store as many of the decisions as PostgreSQL takes now. Raises no database error: it is in the result."""
    with session_of(Kind.JOURNAL):  # what is locked is left for later: a wait would hold up the customers beside it
        return _Attempt(lines).run()


class _Chunk:
    """How many decisions go into a commit. All processes' own guess; wrong ones cost little."""

    def __init__(self) -> None:
        self._lines = MAX_LINES

    def lines(self) -> int:
        return self._lines

    def went_well(self) -> None:
        self._lines = min(2 * self._lines, MAX_LINES)

    def failed(self) -> None:
        self._lines = max(1, self._lines // 2)


_chunk = _Chunk()
_refused_failed_at = float("-inf")


def _refused_may_be_written() -> bool:
    paused = engine().clock.monotonic() - _refused_failed_at < REFUSED_PAUSE_S
    return not paused and RefusedFiles(spool.folder()).has_room()


def _deliver(lines: Sequence[Line]) -> Delivered:
    done = attempt(lines)
    metrics.SPOOL_DELIVERED.inc(done.delivered)
    if done.error is None:
        _chunk.went_well()
    else:
        if len(lines) == 1:
            done.fates[0] = Fate.HELD
        _chunk.failed()
    if done.refusals:
        fate = _keep_refused(lines, done.refusals)
        for index in done.refusals:
            done.fates[index] = fate
    return Delivered(done.fates, done.error)


def _keep_refused(lines: Sequence[Line], refusals: dict[int, Refusal]) -> Fate:
    global _refused_failed_at
    now = datetime.fromtimestamp(engine().clock.now(), UTC)
    records = [
        refused_line(lines[index], at=now, reason=refusal.reason, sqlstate=refusal.sqlstate)
        for index, refusal in refusals.items()
    ]
    try:
        _refused_files().add(records)
    except (RefusedIsFull, OSError) as error:
        _refused_failed_at = engine().clock.monotonic()
        _log.error("refused_decisions_kept_in_spool", decisions=len(records), why=f"{type(error).__name__} {error}")
        return Fate.NO_ROOM
    for record, refusal in zip(records, refusals.values(), strict=True):
        metrics.SPOOL_REFUSED.labels(refusal.kind).inc()
        _log.error(
            "spooled_decision_refused", transaction_id=record.transaction_id, key=record.key, error=refusal.reason
        )
    return Fate.SETTLED


_files: RefusedFiles | None = None


def _refused_files() -> RefusedFiles:
    global _files
    if _files is None or _files.folder != spool.folder():
        _files = RefusedFiles(spool.folder())
    return _files


class _Item(msgspec.Struct, frozen=True):
    index: int
    entry: JournalEntry

    @property
    def customer_id(self) -> str:
        return self.entry.transaction.customer_id


class _Stopped(Exception):
    """PostgreSQL takes nothing at the moment."""


class _Attempt:
    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        self._done = Attempt([Fate.UNTOUCHED] * len(lines))
        self._locks_met = 0

    def run(self) -> Attempt:
        items = [item for index, line in enumerate(self._lines) if (item := self._decoded(index, line)) is not None]
        try:
            if items:
                self._store(self._free(items))
        except _Stopped as stopped:
            self._done.error = stopped.__cause__  # type: ignore[assignment]
        return self._done

    def _decoded(self, index: int, line: Line) -> _Item | None:
        if line.digest:
            self._refuse(index, "unreadable", f"a line of {line.length:,} bytes, which no decision has")
            return None
        try:
            return _Item(index, _decoder.decode(line.data))
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            self._refuse(index, "unreadable", f"{type(error).__name__}: {error}"[:500])
            return None

    def _free(self, items: Sequence[_Item]) -> list[_Item]:
        """Those whose customers nobody has locked; the others are held. To find out costs no wait."""
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                free = free_customers(cursor, {item.customer_id for item in items})
        except _OF_THE_VALUES:  # an id that cannot even be asked for: the commit says whose
            connection.close()
            return list(items)
        except _Unavailable as error:
            connection.close()
            if failure_of(error) is Failure.REJECTED:
                return list(items)
            raise _Stopped from error
        self._hold([item for item in items if item.customer_id not in free])
        return [item for item in items if item.customer_id in free]

    def _store(self, items: Sequence[_Item]) -> None:
        if not items:
            return
        try:
            outcomes = _commit([item.entry for item in items])
        except _Unavailable as error:
            connection.close()
            match failure_of(error):
                case Failure.REJECTED:
                    self._store_without_the_refused(items, error)
                case Failure.CONTENTION:
                    self._store_around_locks(items, error)
                case _:
                    raise _Stopped from error
        except _OF_THE_VALUES as error:
            connection.close()
            self._store_without_the_refused(items, error)
        else:
            for item, outcome in zip(items, outcomes, strict=True):
                self._settle(item, outcome)

    def _store_without_the_refused(self, items: Sequence[_Item], error: Exception) -> None:
        if len(items) > 1:
            half = len(items) // 2
            self._store(items[:half])
            self._store(items[half:])
        else:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]
            self._refuse(items[0].index, "rejected", reason, sqlstate_of(error))

    def _store_around_locks(self, items: Sequence[_Item], error: Exception) -> None:
        """Somebody took a lock just now, or has one on something else than a customer: on a row of the ledger."""
        self._locks_met += 1
        if self._locks_met > MAX_LOCKS:
            raise _Stopped from error
        groups = by_customer(items)
        if len(groups) == 1:
            self._hold(items)
            return
        half = len(groups) // 2
        for part in (groups[:half], groups[half:]):
            self._store(self._free([item for group in part for item in group]))

    def _settle(self, item: _Item, outcome: Recorded | MlserveError) -> None:
        if isinstance(outcome, TransactionConflict):
            self._refuse(item.index, "conflict", _explained(item.entry, outcome.detail))
        elif isinstance(outcome, MlserveError):
            self._refuse(item.index, "conflict", outcome.detail)
        elif outcome.stored is not None and not _is_same(item.entry, outcome.stored):
            self._refuse(item.index, "conflict", _explained(item.entry, ""))
        else:
            self._done.fates[item.index] = Fate.SETTLED
            self._done.delivered += 1

    def _hold(self, items: Sequence[_Item]) -> None:
        for item in items:
            self._done.fates[item.index] = Fate.HELD

    def _refuse(self, index: int, kind: str, reason: str, sqlstate: str | None = None) -> None:
        self._done.refusals[index] = Refusal(kind, reason, sqlstate)


def _commit(entries: Sequence[JournalEntry]) -> list[Recorded | MlserveError]:
    """A session that has ended since it was last used is found out by its use: then one more, on a new one."""
    try:
        return commit(entries)
    except _Unavailable as error:
        connection.close()
        if failure_of(error) not in (Failure.SESSION, Failure.UNAVAILABLE):
            raise
        return commit(entries)


def _is_same(entry: JournalEntry, stored: bytes) -> bool:
    try:
        return is_same_answer(entry.response, msgspec.json.decode(stored, type=ScoreResponse))
    except msgspec.MsgspecError:
        return False


def _explained(entry: JournalEntry, detail: str) -> str:
    """Which answer was stored first, beside the one that was given as well."""
    given = f"{entry.response.decision} with score {entry.response.score} (request {entry.digest.hex()[:16]})"
    try:
        stored = Decision.objects.filter(pk=entry.transaction.id).first()
    except _Unavailable:
        connection.close()
        stored = None
    if stored is None:
        return f"{detail}. This one was {given}" if detail else f"another answer was stored first; this one was {given}"
    return (
        f"another answer for transaction {entry.transaction.id} was stored first: {stored.decision} with score "
        f"{stored.score} (request {bytes(stored.request_digest).hex()[:16]}) at {stored.decided_at.isoformat()}; "
        f"this one was {given} at {entry.response.decided_at.isoformat()}"
    )


def refused_decisions() -> RefusedFiles:
    """Those of this host."""
    return _refused_files()


def retry(refused: Sequence[Refused]) -> Attempt:
    """Try refused decisions once more. What is stored now leaves the refused files, the others stay with the new
    reason. Raises OSError if the files cannot be written; then all stay."""
    done = Attempt([])
    for start in range(0, len(refused), MAX_LINES):
        lines = [
            Line(0, record.data, record.length or len(record.data) + 1, record.sha256)
            for record in refused[start : start + MAX_LINES]
        ]
        part = attempt(lines)
        done.refusals |= {start + index: refusal for index, refusal in part.refusals.items()}
        done.fates += part.fates
        done.delivered += part.delivered
        done.error = part.error
        if done.error is not None:
            break
    now = datetime.fromtimestamp(engine().clock.now(), UTC)
    changed: dict[str, Refused | None] = {}
    for index, (record, fate) in enumerate(zip(refused, done.fates, strict=False)):
        if fate is Fate.SETTLED:
            changed[record.key] = None
        elif refusal := done.refusals.get(index):
            changed[record.key] = msgspec.structs.replace(
                record, at=now, reason=refusal.reason, sqlstate=refusal.sqlstate
            )
    refused_decisions().rewrite(lambda record: changed.get(record.key, record))
    metrics.SPOOL_DELIVERED.inc(done.delivered)
    return done


def _poll() -> None:
    deliver_spooled()


_poller = Poller("spool", INTERVAL_S, _poll)


def ensure_delivering() -> None:
    """Start delivering in this process; idempotent."""
    _poller.ensure_started()


def stop() -> None:
    """Stop delivering in this process."""
    _poller.stop()
