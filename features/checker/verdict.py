"""Judges a merged history: which reads were stale, by how much, and which were wrong.

Versions of a key are ordered, so a read is judged by one look-up. Let n be the first committed version newer than the
one that was read. A commit becomes visible somewhere between its sending and its acknowledgement, so the read was stale
for at least `start - ack(n)` and at most `start - sent(n)`. Violations are counted by the lower bound: no false alarms.
Where n was never acknowledged (its writer died), a later version that was says as much, since it came after n.

What was committed is not taken from the clients, who may have died before they knew, but from the journal that the
database keeps in the writers' own transactions.
"""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from features.checker.history import TIERS, Event, Flag, Read, WriteEvent

HORIZONS_S = (0.1, 0.25, 1.0, 10.0, 300.0)
NEVER = math.inf
_NS = 1_000_000_000
_MOST_EXAMPLES = 20


class Quantiles(msgspec.Struct, frozen=True):
    """In seconds, of unflagged stale reads. 0 without any."""

    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0


class Nines(msgspec.Struct, frozen=True):
    """`failed` writes of `writes` were not yet seen by everybody at this age. `nines`: -log10 of that share.

    To a process whose clock is wrong they are younger by that much, as its bound is wider.

    Without a failure `nines` is None, and `bound` the number of nines of which one can be sure to 95 %.
    """

    horizon_s: float
    writes: int
    failed: int
    nines: float | None
    bound: float | None


class Example(msgspec.Struct, frozen=True):
    """One violation, to look for in the logs."""

    figure: str
    key: int
    process: int
    session: int
    tier: str
    version: int
    start_ns: int
    staleness_s: float


class Verdict(msgspec.Struct):
    """`stale_reads`: by tier and flag ("l2" or "l2 flagged"). What `violations` names must be 0."""

    reads: int = 0
    writes: int = 0
    rolled_back: int = 0
    in_doubt: int = 0
    unanswered: int = 0
    reads_by_tier: dict[str, int] = {}
    stale_reads: dict[str, int] = {}
    staleness_s: Quantiles = Quantiles()
    upper_staleness_s: Quantiles = Quantiles()
    over_bound: int = 0
    permanent_stale: int = 0
    wrong_bytes: int = 0
    phantom: int = 0
    future_reads: int = 0
    ryw_violations: int = 0
    monotonic_violations: int = 0
    strong_violations: int = 0
    strong_reads: int = 0
    token_reads: int = 0
    final_reads: int = 0
    unproven_ratio: float = 0.0
    hit_rate: float = 0.0
    nines: list[Nines] = []
    examples: list[Example] = []

    @property
    def violations(self) -> dict[str, int]:
        return {name: count for name in GATED if (count := getattr(self, name))}


GATED = (
    "over_bound",
    "permanent_stale",
    "wrong_bytes",
    "phantom",
    "future_reads",
    "ryw_violations",
    "monotonic_violations",
    "strong_violations",
)
"""The figures that must be 0."""


class Commits:
    """What was committed of one key, by version: from when on it may have been visible, and from when on it must."""

    def __init__(self, versions: Sequence[int]) -> None:
        self.versions = sorted(versions)
        self.sent: list[float] = [-NEVER] * len(self.versions)
        self.acked: list[float] = [NEVER] * len(self.versions)
        self.own_acked: list[float] = [NEVER] * len(self.versions)
        self.content: list[int | None] = [None] * len(self.versions)

    def place(self, version: int) -> int | None:
        """None if it was not committed."""
        at = bisect_left(self.versions, version)
        return at if at < len(self.versions) and self.versions[at] == version else None

    def newer_than(self, version: int) -> int:
        """Place of the first newer one; the number of versions if there is none."""
        at = bisect_left(self.versions, version)
        return at + 1 if at < len(self.versions) and self.versions[at] == version else at

    def settle(self) -> None:
        """A version is visible when a newer one has been acknowledged."""
        earliest = NEVER
        for at in range(len(self.versions) - 1, -1, -1):
            earliest = min(earliest, self.own_acked[at])
            self.acked[at] = earliest


class Process(NamedTuple):
    """Whose reads these are. Its bound is wider by as much as its clock was wrong."""

    number: int
    clock_offset_s: float
    reads: Iterable[Read]


class _Missed(NamedTuple):
    """An unflagged stale read: versions from place `first` on were missed, at `at_ns`."""

    key: int
    first: int
    at_ns: float


def judge(
    *,
    journal: Mapping[int, Sequence[int]],
    writes: Iterable[WriteEvent],
    processes: Iterable[Process],
    bound_s: float,
) -> Verdict:
    """`journal`: of each key the versions that were committed."""
    verdict = Verdict(reads_by_tier={}, stale_reads={}, nines=[], examples=[])
    commits = {key: Commits(versions) for key, versions in journal.items()}
    written = _take_writes(commits, writes, verdict)
    judgement = _Judgement(commits, written, bound_s, verdict)
    for process in processes:
        judgement.take(process)
    judgement.conclude()
    return verdict


def _take_writes(
    commits: Mapping[int, Commits], events: Iterable[WriteEvent], verdict: Verdict
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Adds times and contents to `commits`. Returns what each session had acknowledged: (time, version) by key."""
    of_session: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    sent: set[tuple[int, int]] = set()
    for event in events:
        if event.event == Event.ROLLED_BACK:
            verdict.rolled_back += 1
            continue
        if event.event not in (Event.SENT, Event.ACKED):
            continue
        of_key = commits.get(event.key)
        place = of_key.place(event.version) if of_key is not None else None
        if of_key is None or place is None:
            continue  # sent, and lost with its connection
        if event.event == Event.SENT:
            of_key.sent[place], of_key.content[place] = event.at_ns, event.content
            sent.add((event.key, event.version))
        else:
            of_key.own_acked[place] = event.at_ns
            sent.discard((event.key, event.version))
            verdict.writes += 1
            of_session[event.session, event.key].append((event.at_ns, event.version))
    verdict.in_doubt = len(sent)
    for of_key in commits.values():
        of_key.settle()
    return of_session


class _Judgement:
    def __init__(
        self,
        commits: Mapping[int, Commits],
        written: Mapping[tuple[int, int], list[tuple[int, int]]],
        bound_s: float,
        verdict: Verdict,
    ) -> None:
        self._commits = commits
        self._written = written
        self._bound_s = bound_s
        self._verdict = verdict
        self._tiers: Counter[int] = Counter()
        self._stale: Counter[str] = Counter()
        self._unproven = 0
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._missed: list[_Missed] = []
        self._strong: dict[int, list[Read]] = defaultdict(list)
        self._examples: Counter[str] = Counter()
        self._empty = Commits(())

    def take(self, process: Process) -> None:
        bound_s = self._bound_s + abs(process.clock_offset_s)
        seen: dict[tuple[int, int], tuple[int, int]] = {}
        for read in process.reads:
            self._verdict.reads += 1
            if not read.flags & Flag.ANSWERED:
                self._verdict.unanswered += 1
                continue
            self._tiers[read.tier] += 1
            if read.flags & Flag.UNPROVEN:
                self._unproven += 1
            self._judge(process.number, read, bound_s)
            if read.flags & Flag.TOKEN and not read.flags & Flag.STALE:
                self._judge_session(process.number, read, seen)

    def _judge(self, process: int, read: Read, bound_s: float) -> None:
        verdict, of_key = self._verdict, self._commits.get(read.key, self._empty)
        place = of_key.place(read.version)
        if place is None and read.version:
            self._count("phantom", process, read)
        elif place is not None:
            if of_key.content[place] not in (None, read.content):
                self._count("wrong_bytes", process, read)
            if of_key.sent[place] > read.end_ns:
                self._count("future_reads", process, read)
        newer = of_key.newer_than(read.version)
        lower_s = upper_s = 0.0
        if newer < len(of_key.versions):
            lower_s = max(0.0, (read.start_ns - of_key.acked[newer]) / _NS)
            upper_s = max(0.0, (read.start_ns - of_key.sent[newer]) / _NS)
        flagged = bool(read.flags & Flag.STALE)
        if lower_s > 0:
            self._stale[TIERS[read.tier] + (" flagged" if flagged else "")] += 1
        if read.flags & Flag.FINAL:
            verdict.final_reads += 1
            if newer < len(of_key.versions):
                self._count("permanent_stale", process, read, lower_s)
        if flagged:
            return
        if upper_s > 0:
            self._upper.append(upper_s)
        if lower_s > 0:
            self._lower.append(lower_s)
            self._missed.append(_Missed(read.key, newer, read.start_ns - (bound_s - self._bound_s) * _NS))
            if lower_s > bound_s:
                self._count("over_bound", process, read, lower_s)
        if read.flags & Flag.STRONG:
            verdict.strong_reads += 1
            self._strong[read.key].append(read)
            if lower_s > 0:
                self._count("strong_violations", process, read, lower_s)

    def _judge_session(self, process: int, read: Read, seen: dict[tuple[int, int], tuple[int, int]]) -> None:
        """`seen`: of each session and key the newest version that it was given, and how many of its writes it knows."""
        self._verdict.token_reads += 1
        session = read.session, read.key
        newest, known = seen.get(session, (0, 0))
        if read.version < newest:
            self._count("monotonic_violations", process, read)
        own = self._written.get(session, ())
        # Both are in the order of time. Later writes of a session have larger versions.
        while known < len(own) and own[known][0] <= read.start_ns:
            known += 1
        if known and read.version < own[known - 1][1]:
            self._count("ryw_violations", process, read)
        seen[session] = max(newest, read.version), known

    def _count(self, figure: str, process: int, read: Read, staleness_s: float = 0.0) -> None:
        setattr(self._verdict, figure, getattr(self._verdict, figure) + 1)
        self._examples[figure] += 1
        if self._examples[figure] <= _MOST_EXAMPLES:
            tier = str(TIERS[read.tier])
            self._verdict.examples.append(
                Example(figure, read.key, process, read.session, tier, read.version, read.start_ns, staleness_s)
            )

    def conclude(self) -> None:
        verdict = self._verdict
        self._order_strong_reads()
        verdict.reads_by_tier = {str(TIERS[tier]): count for tier, count in sorted(self._tiers.items())}
        verdict.stale_reads = dict(sorted(self._stale.items()))
        verdict.staleness_s, verdict.upper_staleness_s = _quantiles(self._lower), _quantiles(self._upper)
        answered = sum(self._tiers.values())
        if answered:
            verdict.unproven_ratio = self._unproven / answered
            hits = sum(count for tier, count in self._tiers.items() if TIERS[tier] in ("l1", "l2", "request"))
            verdict.hit_rate = hits / answered
        verdict.nines = [self._nines(horizon_s) for horizon_s in HORIZONS_S]

    def _order_strong_reads(self) -> None:
        """Of two strong reads of a key, the one that began after the other had ended has its version or a newer one.

        Whether what a strong read missed had been acknowledged, `_judge` has looked at.
        """
        for reads in self._strong.values():
            by_end = sorted(reads, key=lambda read: read.end_ns)
            newest, ended = 0, 0
            for read in sorted(reads, key=lambda read: read.start_ns):
                while by_end[ended].end_ns < read.start_ns:
                    newest = max(newest, by_end[ended].version)
                    ended += 1
                if read.version < newest:
                    self._count("strong_violations", -1, read)

    def _nines(self, horizon_s: float) -> Nines:
        failed: set[tuple[int, int]] = set()
        horizon_ns = horizon_s * _NS
        for key, first, at_ns in self._missed:
            of_key = self._commits[key]
            for place in range(first, len(of_key.versions)):
                if of_key.acked[place] >= at_ns - horizon_ns:
                    break
                failed.add((key, place))
        writes = self._verdict.writes
        if failed and writes:
            return Nines(horizon_s, writes, len(failed), -math.log10(min(1.0, len(failed) / writes)), None)
        return Nines(horizon_s, writes, 0, None, math.log10(writes / 3) if writes > 3 else 0.0)


def _quantiles(values: list[float]) -> Quantiles:
    if not values:
        return Quantiles()
    values.sort()

    def at(share: float) -> float:
        return values[min(len(values) - 1, math.ceil(share * len(values)) - 1)]

    return Quantiles(at(0.5), at(0.99), at(0.999), values[-1])
