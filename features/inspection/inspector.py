"""Looks at the cache from outside and says whether it holds what Postgres says, seconds and minutes after each write.

It believes nobody who is responsible for a copy. It reads the journal of writes (`due.py`), asks every tier and every
process what it would serve (`copies.py`), and compares (`verdicts.py`):

    lines that are 1 s, 10 s and 300 s old
      -> what would be served without a flag, and misses the write?      -> a second look a moment later, then Postgres
      -> of the newest version, but with other values than its row?      -> Postgres, at once
      -> count, describe, delete (`repair.py`), and switch the group off

Nothing is kept in this process: a look is concluded in one database transaction, which moves the cursors on and adds
the counts, or not at all. A look that L2 or Postgres did not take part in is made again. Two inspectors lose races to
each other and count nothing twice. (After Meta's Polaris and Uber's cache inspector; FRESHNESS, the checker.)
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
import structlog
from django.db import DatabaseError, InterfaceError, connection, transaction

from features.inspection import results
from features.inspection.copies import Copy, Looked, TierAway, Tiers
from features.inspection.due import Due, Line, Schedule, advance, read_schedule
from features.inspection.repair import SWITCHES_OFF, Repair, switch_off
from features.inspection.results import ALL_TIERS, Counts, Finding
from features.inspection.verdicts import Cause, contradicts, is_allowed_to_miss, judge_again, misses_write
from features.source import read_source
from mlserve.cache.clock import Clock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.observability import metrics
from mlserve.postgres.sessions import Kind, session_of

TICK_S = 0.5
"""How much later than its horizon a line is looked at, at most, while the inspector runs."""
SECOND_LOOK_AFTER_S = 0.5
_log = structlog.get_logger(__name__)


class Tally(msgspec.Struct):
    """What came of a run. `trouble`: who did not take part in the last look, empty if all did."""

    looks: int = 0
    races: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)
    findings: list[Finding] = []
    repaired: int = 0
    switched_off: list[str] = []
    skipped: list[str] = []
    processes: set[str] = set()
    lag_s: float = 0.0
    trouble: str = ""

    @property
    def inconsistent(self) -> int:
        return sum(count.inconsistent for (_, tier), count in self.counts.of.items() if tier == ALL_TIERS)


class _Raced(Exception):
    """Another inspector has looked at these lines."""


class _Look(msgspec.Struct):
    """What one look has found."""

    counts: Counts = msgspec.field(default_factory=Counts)
    findings: list[Finding] = []
    staleness: list[tuple[str, float]] = []
    """Group, and for how long the newest write has been missing from a copy that would be served; 0: it has it."""
    processes: Collection[str] = ()
    switched_off: list[str] = []


class _Sight(msgspec.Struct, frozen=True):
    """What was seen: the tiers, then the rows of what they would serve; of suspects both once more, in that order."""

    policies: Mapping[str, Policy]
    first: Looked
    rows: Mapping[Key, Entry]
    second: Looked
    rows_then: Mapping[Key, Entry]

    def cause(self, copy: Copy, line: Line, of: Due) -> Cause | None:
        if not copy.serves:
            return None
        cause = contradicts(copy, self.rows[line.key])
        if cause is None and self.is_suspect(copy, line, of):
            cause = judge_again(_same_place(copy, self.second), line.version, self.rows_then[line.key])
        return cause

    def is_suspect(self, copy: Copy, line: Line, of: Due) -> bool:
        allowed = is_allowed_to_miss(self.policies[line.key.group], age_s=of.age_s)
        return not allowed and misses_write(copy, line.version)


class Inspector:
    """Not thread-safe. `policies`: those in force now."""

    def __init__(
        self, *, tiers: Tiers, repair: Repair, policies: Callable[[], Mapping[str, Policy]], clock: Clock
    ) -> None:
        self.tally = Tally()
        self._tiers = tiers
        self._repair = repair
        self._policies = policies
        self._clock = clock
        self._unconcluded: dict[tuple[int, Key, Tier, str], Finding] = {}
        self._told: set[tuple[int, Key, Tier, str]] = set()

    def run(self, seconds: float, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Looks every `TICK_S` for so long. Never raises: who is away is told in the log and in the tally."""
        ends = self._clock.monotonic() + seconds
        while not stopped():
            began = self._clock.monotonic()
            self._attempt()
            rest_s = min(ends, began + TICK_S) - self._clock.monotonic()
            if rest_s > 0:
                self._clock.sleep(rest_s)
            if self._clock.monotonic() >= ends:
                return

    def look(self) -> None:
        """One look at all that is due. Raises TierAway and Django's database errors; then nothing was counted."""
        with session_of(Kind.BACKGROUND):
            schedule = read_schedule()
            metrics.INSPECTION_LAG.set(schedule.lag_s)
            self.tally.lag_s = schedule.lag_s
            look = self._look_at(schedule.due)
            self._remember(look)
            wrong = {finding.key for finding in look.findings if finding.cause is not Cause.LATE}
            if wrong:
                self._repair.delete(wrong)
            try:
                self._conclude(schedule, look)
            except _Raced:
                self._forget()
                self.tally.races += 1
                return
        self._forget()
        self._publish(schedule, look, repaired=len(wrong))

    def _attempt(self) -> None:
        trouble = ""
        try:
            self.look()
        except TierAway as away:
            trouble = f"cache: {away}"
        except (DatabaseError, InterfaceError) as error:
            trouble = f"Postgres: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            if not connection.in_atomic_block:
                connection.close()
        if trouble.partition(":")[0] != self.tally.trouble.partition(":")[0]:
            if trouble:
                _log.warning("inspection_waits", waits_for=trouble)
            else:
                _log.info("inspection_goes_on")
        self.tally.trouble = trouble

    # --- one look ---

    def _look_at(self, due: Sequence[Due]) -> _Look:
        look, policies = _Look(), self._policies()
        lines = [(of, line) for of in due for line in of.lines if line.key.group in policies]
        if lines:
            sight = self._see(lines, policies)
            look.processes = sight.first.processes
            for of, line in lines:
                self._judge(look, of, line, sight)
        for finding in self._unconcluded.values():  # of lines that were not chosen again
            look.findings.append(finding)
            for tier in (ALL_TIERS, str(finding.tier)):
                look.counts.at(finding.horizon_s, tier).add(finding.cause, age_s=finding.age_s)
        return look

    def _see(self, lines: Sequence[tuple[Due, Line]], policies: Mapping[str, Policy]) -> _Sight:
        keys = {line.key for _, line in lines}
        first = self._tiers.look(keys, policies)
        rows = read_source([key for key in sorted(keys) if any(copy.serves for copy in first.copies[key])])
        sight = _Sight(policies, first, rows, Looked({}, ()), {})
        suspects = {
            line.key for of, line in lines if any(sight.is_suspect(copy, line, of) for copy in first.copies[line.key])
        }
        if not suspects:
            return sight
        self._clock.sleep(SECOND_LOOK_AFTER_S)
        second = self._tiers.look(suspects, policies)
        return msgspec.structs.replace(sight, second=second, rows_then=read_source(sorted(suspects)))

    def _judge(self, look: _Look, of: Due, line: Line, sight: _Sight) -> None:
        group, wrong = line.key.group, self._found_before(of, line, look)
        for copy in sight.first.copies[line.key]:
            if copy.serves:
                look.staleness.append((group, of.age_s if misses_write(copy, line.version) else 0.0))
            cause = sight.cause(copy, line, of)
            if cause is not None and (copy.tier, copy.place) not in wrong:
                wrong[copy.tier, copy.place] = cause
                look.findings.append(
                    Finding(line.key, copy.tier, copy.place, of.horizon_s, of.age_s, cause, copy.version, line.version)
                )
        counts, age_s = look.counts, line.began_s
        counts.at(of.horizon_s, ALL_TIERS).add(_gravest(wrong.values()), age_s=age_s)
        if sight.policies[group].use_l2:
            of_l2 = [cause for (tier, _), cause in wrong.items() if tier is Tier.L2]
            counts.at(of.horizon_s, Tier.L2).add(_gravest(of_l2), age_s=age_s)
        if sight.policies[group].use_l1:
            for process in sight.first.processes:
                counts.at(of.horizon_s, Tier.L1).add(wrong.get((Tier.L1, process)), age_s=age_s)

    # --- what was found and not concluded ---

    def _remember(self, look: _Look) -> None:
        """Somebody may be away before this is counted, and the copies gone when they are looked at again."""
        self._unconcluded = {_place_of(finding): finding for finding in look.findings}
        for finding in look.findings[: results.MOST_FINDINGS_AT_ONCE]:
            if _place_of(finding) not in self._told:
                _tell(finding)
        self._told = set(self._unconcluded)

    def _forget(self) -> None:
        self._unconcluded, self._told = {}, set()

    def _found_before(self, of: Due, line: Line, look: _Look) -> dict[tuple[Tier, str], Cause]:
        """By tier and place, what a look that was not concluded has found of this line; now it counts."""
        places = [place for place in self._unconcluded if place[:2] == (of.horizon_s, line.key)]
        found = [self._unconcluded.pop(place) for place in places]
        look.findings += found
        return {(finding.tier, finding.place): finding.cause for finding in found}

    # --- what comes of it ---

    def _conclude(self, schedule: Schedule, look: _Look) -> None:
        """All of it or nothing."""
        causes: dict[str, list[Cause]] = defaultdict(list)
        for finding in look.findings:
            if finding.cause in SWITCHES_OFF:
                causes[finding.key.group].append(finding.cause)
        now = schedule.now.at
        with transaction.atomic():
            if not advance(schedule):
                raise _Raced
            look.switched_off = [
                group
                for group, of_group in sorted(causes.items())
                if switch_off(group, cause=max(of_group, key=_GRAVITY.index), now=now)
            ]
            results.keep(look.counts, look.findings, switched_off=look.switched_off, now=now)

    def _publish(self, schedule: Schedule, look: _Look, *, repaired: int) -> None:
        for (horizon_s, tier), count in look.counts.of.items():
            if tier != ALL_TIERS:
                metrics.CONSISTENCY_CHECKED.labels(tier, str(horizon_s)).inc(count.checked)
                for cause, number in count.causes.items():
                    metrics.INCONSISTENT.labels(tier, str(horizon_s), cause).inc(number)
        for group, seconds in look.staleness:
            metrics.STALENESS.labels(group).observe(seconds)
        for due in schedule.due:
            if due.skipped:
                metrics.INSPECTION_SKIPPED.labels(due.skipped).inc()
                _log.warning("inspection_skipped_lines", why=due.skipped, horizon_s=due.horizon_s)
        tally = self.tally
        tally.looks += 1
        tally.counts.merge(look.counts)
        tally.findings += look.findings[: max(0, results.MOST_FINDINGS_AT_ONCE - len(tally.findings))]
        tally.repaired += repaired
        tally.switched_off += look.switched_off
        tally.skipped += [due.skipped for due in schedule.due if due.skipped]
        tally.processes |= set(look.processes)


_GRAVITY = [Cause.LATE, Cause.UNKNOWN, Cause.LOST_INVALIDATION, Cause.WRONG_BYTES]


def _gravest(causes: Iterable[Cause]) -> Cause | None:
    return max(causes, key=_GRAVITY.index, default=None)


def _same_place(copy: Copy, looked: Looked) -> Copy | None:
    places = [each for each in looked.copies[copy.key] if (each.tier, each.place) == (copy.tier, copy.place)]
    return places[0] if places else None


def _place_of(finding: Finding) -> tuple[int, Key, Tier, str]:
    return finding.horizon_s, finding.key, finding.tier, finding.place


def _tell(finding: Finding) -> None:
    say = _log.warning if finding.cause is Cause.LATE else _log.error
    say(
        "copy_inconsistent",
        group=finding.key.group,
        tier=str(finding.tier),
        place=finding.place,
        cause=str(finding.cause),
        horizon_s=finding.horizon_s,
        held_version=finding.held,
        written_version=finding.written,
    )
