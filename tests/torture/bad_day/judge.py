"""What is left after the day, held against what was promised. Looks at nothing but the facts that it is given."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from tests.torture.bad_day.ledger import Attempt, LabelTold, Told
from tests.torture.bad_day.violation import Violation

SCORE_TOLERANCE: Final = 1e-9
AMOUNT_TOLERANCE: Final = 1e-4
MAX_RELAY_LAG_S: Final = 1.0
MAX_GROWTH_BYTES: Final = 64 * 1024
"""Of one file while nobody asks for anything: lines of tasks and polls."""
MAX_THREADS_MORE, MAX_FILES_MORE = 26, 40
"""The web server begins its threads, as many as it is told to have, when it has use for them."""
MAX_RSS_RATIO, MAX_RSS_MORE_BYTES = 1.5, 150 * 1024 * 1024
MAX_WAIT_S: Final = 5.0
"""Of a session of PostgreSQL, while nobody asks for anything."""
END: Final = "the end"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A decision in PostgreSQL, or a line of the file of refused ones, with its transaction's amount."""

    transaction_id: str
    score: float
    decision: str
    amount: float | None
    """None: the ledger does not have the transaction."""


@dataclass(frozen=True, kw_only=True)
class ActivityRow:
    """A customer's recent transactions as (seconds since 1970, amount, tag), oldest first."""

    customer_id: str
    stored: tuple[tuple[float, float, float], ...] | None
    derived: tuple[tuple[float, float, float], ...]
    """From the ledger."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy that would be served unflagged, of a group whose freshness is bounded, with the source's version."""

    where: str
    entity: str
    group: str
    version: int
    source_version: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A feature that two reads of the same score disagree on: through the cache, and past it."""

    where: str
    entity: str
    feature: str
    cached: float
    source: float


@dataclass(frozen=True, kw_only=True)
class ProcessSample:
    """What a process holds."""

    threads: int
    files: int
    rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class Session:
    """One of PostgreSQL's that is not merely idle."""

    application: str
    state: str
    wait: str
    seconds: float
    query: str


@dataclass(kw_only=True)
class Facts:
    """All that the judge looks at. Empty is well."""

    ended_at: float = 0.0
    attempts: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)
    stored: Sequence[Stored] = ()
    refused: Sequence[Stored] = ()
    lost_by_restore: Sequence[Stored] = ()
    """What the old server had and the restored copy has not."""
    spooled_lines: int = 0
    labels_told: Sequence[LabelTold] = ()
    label_reports: Set[tuple[str, bool]] = frozenset()
    """Transaction and label of every report that is stored."""
    activity: Sequence[ActivityRow] = ()
    copies: Sequence[Copy] = ()
    differences: Sequence[Difference] = ()
    relay_lag_s: float = 0.0
    epochs: tuple[Mapping[str, float], Mapping[str, float]] = field(default_factory=lambda: ({}, {}))
    """By partition, before and after the time without traffic."""
    policies: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Of each web process, those that differ from PostgreSQL's: by process, policy and what it says."""
    files: tuple[Mapping[str, int], Mapping[str, int]] = field(default_factory=lambda: ({}, {}))
    """Sizes by name, before and after the time without traffic."""
    processes: tuple[Mapping[str, ProcessSample], Mapping[str, ProcessSample]] = field(default_factory=lambda: ({}, {}))
    """At the begin of the day, and in the end."""
    silent: Sequence[str] = ()
    """Processes that do not answer, are not there, or did not end when they were told to."""
    sessions: Sequence[Session] = ()
    tracebacks: Mapping[str, int] = field(default_factory=dict)
    """Last line of each kind, and how often."""
    errors_500: float = 0.0
    """That the processes have counted themselves."""
    doctor: Sequence[tuple[str, str, str]] = ()
    """Level, subject and detail of what is not ok."""


EXPECTED_TRACEBACKS: Final[dict[str, str]] = {
    r"WorkerLostError: Worker exited prematurely: signal 9": "Celery says that its pool's process was killed",
    r"billiard\.einfo\.ExceptionWithTraceback: $": "the same, in the words of Celery's pool",
    r"celery\.beat\.SchedulingError: Couldn't apply scheduled task .*(Error 111|Connection closed|Timeout)": (
        "beat says that the broker is away; the task's next turn comes"
    ),
    r"AttributeError: 'NoneType' object has no attribute 'connection_errors'": (
        "Celery closes a channel of its gossip whose connection is gone; the worker goes on"
    ),
}
"""Pattern of a traceback's last line, and why it may be there."""
EXPECTED_WARNINGS: Final[dict[str, str]] = {
    r"spool: [\d,]+ decisions that clients were told were refused by PostgreSQL": (
        "two processes decided on one id while PostgreSQL was away, and one of both is explained"
    ),
}
"""Pattern of subject and detail of the doctor's warning, and why it may be there."""


def judge(facts: Facts) -> list[Violation]:
    """Every promise that was not kept."""
    return [
        *_decisions(facts),
        *_freshness(facts),
        *_growth(facts),
        *_processes(facts),
    ]


# --- decisions ---


def _decisions(facts: Facts) -> Iterator[Violation]:
    stored, refused, lost = (_by_id(rows) for rows in (facts.stored, facts.refused, facts.lost_by_restore))
    for transaction_id, rows in stored.items():
        if len(rows) > 1:
            yield _found("twice", facts, f"{transaction_id} is stored {len(rows)} times: {rows}")
        if any(row.amount is None for row in rows):
            yield _found("no transaction", facts, f"{transaction_id} has a decision and stands in no ledger")
    for transaction_id, attempts in facts.attempts.items():
        decided = [attempt for attempt in attempts if attempt.told is Told.DECIDED]
        for attempt in _different(decided):
            kept = [*stored.get(transaction_id, ()), *refused.get(transaction_id, ()), *lost.get(transaction_id, ())]
            if not any(_same(attempt, row) for row in kept):
                rule = "other answer" if transaction_id in stored else "lost"
                yield _of(attempt, rule, f"{_said(attempt)}; {_kept(stored, refused, transaction_id)}")
        open_ends = decided or any(attempt.told is Told.UNKNOWN for attempt in attempts)
        if not open_ends and transaction_id in stored:
            last = attempts[-1]
            yield _of(last, "stands after all", f"every client was refused ({last.detail}), yet it is stored")
    for label in facts.labels_told:
        if (label.transaction_id, label.is_fraud) not in facts.label_reports:
            what = f"{label.transaction_id} is {'fraud' if label.is_fraud else 'genuine'}, and no report says so"
            yield Violation(rule="label lost", at=label.sent_at, under=label.under, detail=what)
    if facts.spooled_lines:
        yield _found("spool", facts, f"{facts.spooled_lines} lines still wait in the spool")


def _by_id(rows: Sequence[Stored]) -> dict[str, list[Stored]]:
    found: dict[str, list[Stored]] = defaultdict(list)
    for row in rows:
        found[row.transaction_id].append(row)
    return found


def _different(decided: Sequence[Attempt]) -> list[Attempt]:
    """The first of each answer that was given."""
    found: dict[tuple[float | None, str, float | None], Attempt] = {}
    for attempt in decided:
        found.setdefault((attempt.score, attempt.decision, attempt.amount), attempt)
    return list(found.values())


def _same(attempt: Attempt, row: Stored) -> bool:
    if attempt.score is None or abs(attempt.score - row.score) > SCORE_TOLERANCE or attempt.decision != row.decision:
        return False
    return attempt.amount is None or row.amount is None or abs(attempt.amount - row.amount) < AMOUNT_TOLERANCE


def _said(attempt: Attempt) -> str:
    of = f"amount {attempt.amount}, " if attempt.amount is not None else ""
    flags = f", {','.join(attempt.reasons)}" if attempt.reasons else ""
    return (
        f"{attempt.transaction_id} ({of}web-{attempt.web}, {attempt.kind}{', replayed' if attempt.replayed else ''}) "
        f"was {attempt.decision} {attempt.score}{flags}"
    )


def _kept(stored: Mapping[str, Sequence[Stored]], refused: Mapping[str, Sequence[Stored]], transaction_id: str) -> str:
    parts = [
        f"{name}: " + ", ".join(f"{row.decision} {row.score} (amount {row.amount})" for row in rows[transaction_id])
        for name, rows in (("stored", stored), ("refused file", refused))
        if transaction_id in rows
    ]
    return "; ".join(parts) or "it is nowhere"


# --- freshness ---


def _freshness(facts: Facts) -> Iterator[Violation]:
    for row in facts.activity:
        if row.stored is None:
            if row.derived:
                yield _found("activity", facts, f"{row.customer_id} has no row and {len(row.derived)} transactions")
        elif not _alike(row.stored, row.derived):
            yield _found("activity", facts, f"{row.customer_id}: {_first_difference(row)}")
    for copy in facts.copies:
        if copy.version < copy.source_version:
            detail = f"{copy.group} of {copy.entity} in {copy.where} has version {copy.version}"
            yield _found("stale", facts, f"{detail}, PostgreSQL {copy.source_version}, and nothing flags it")
        elif copy.version > copy.source_version:
            detail = f"{copy.group} of {copy.entity} in {copy.where} has version {copy.version}"
            yield _found("from nowhere", facts, f"{detail}, which PostgreSQL ({copy.source_version}) does not know")
    for each in facts.differences:
        detail = f"{each.feature} of {each.entity} at {each.where}: {each.cached} through the cache"
        yield _found("wrong value", facts, f"{detail}, {each.source} from PostgreSQL, unflagged")
    if facts.relay_lag_s > MAX_RELAY_LAG_S:
        yield _found("relay", facts, f"its watermark is {facts.relay_lag_s:.2f} s old")
    before, after = facts.epochs
    for partition, epoch in after.items():
        if epoch > before.get(partition, epoch):
            yield _found(
                "epoch",
                facts,
                f"partition {partition} went from {before[partition]:g} to {epoch:g} while nothing was broken",
            )
    for process, differing in facts.policies.items():
        yield _found("policies", facts, f"{process} has not heard of {differing}")


def _alike(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) < AMOUNT_TOLERANCE
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def _first_difference(row: ActivityRow) -> str:
    assert row.stored is not None
    too_much = [each for each in row.stored if each not in row.derived]
    missing = [each for each in row.derived if each not in row.stored]
    counts = f"{len(row.stored)} transactions stored, {len(row.derived)} in the ledger"
    return f"{counts}; too much: {too_much[:3]}, missing: {missing[:3]}"


# --- files and processes ---


def _growth(facts: Facts) -> Iterator[Violation]:
    before, after = facts.files
    for name, size in sorted(after.items()):
        grown = size - before.get(name, 0)
        if grown > MAX_GROWTH_BYTES:
            yield _found("grows", facts, f"{name} grew by {grown:,} bytes to {size:,} while nobody asked for anything")
    new = sorted(set(after) - set(before))
    if len(new) > 3:
        yield _found("files", facts, f"{len(new)} new files while nobody asked for anything: {', '.join(new[:8])}")
    began, ended = facts.processes
    for name, sample in sorted(ended.items()):
        first = began.get(name)
        if first is None:
            continue
        if sample.threads > first.threads + MAX_THREADS_MORE:
            yield _found("threads", facts, f"{name} has {sample.threads} threads, {first.threads} in the beginning")
        if sample.files > first.files + MAX_FILES_MORE:
            yield _found("open files", facts, f"{name} has {sample.files} open files, {first.files} in the beginning")
        if sample.rss_bytes > first.rss_bytes * MAX_RSS_RATIO + MAX_RSS_MORE_BYTES:
            sizes = f"{sample.rss_bytes / 2**20:.0f} MB, {first.rss_bytes / 2**20:.0f} MB in the beginning"
            yield _found("memory", facts, f"{name} holds {sizes}")


def _processes(facts: Facts) -> Iterator[Violation]:
    for name in facts.silent:
        yield _found("hangs", facts, name)
    for session in facts.sessions:
        if session.seconds > MAX_WAIT_S:
            what = f"{session.application} is {session.state} ({session.wait}) for {session.seconds:.0f} s"
            yield _found("session", facts, f"{what}: {session.query[:120]}")
    for line, times in facts.tracebacks.items():
        if not any(re.search(pattern, line) for pattern in EXPECTED_TRACEBACKS):
            yield _found("traceback", facts, f"{times} times: {line}")
    if facts.errors_500:
        yield _found("500", facts, f"the processes have counted {facts.errors_500:g} answers with status 500")
    for level, subject, detail in facts.doctor:
        found = f"{subject}: {detail}"
        if level == "fail" or not any(re.match(pattern, found) for pattern in EXPECTED_WARNINGS):
            yield _found("doctor", facts, f"{level}: {found}")


def _found(rule: str, facts: Facts, detail: str) -> Violation:
    return Violation(rule=rule, at=facts.ended_at, under=END, detail=detail)


def _of(attempt: Attempt, rule: str, detail: str) -> Violation:
    return Violation(rule=rule, at=attempt.sent_at, under=attempt.under, detail=detail)
