"""`freshness`: from the commit of a change to the moment at which no process serves the old value any more.

Three ways to keep copies fresh, on the same servers in one run, with the same readers and the same writes:

* `proven`: a relay reads the journal, and each process follows what it does;
* `ttl`: nobody is told, copies expire;
* `delete`: whoever writes deletes the copy in L2 after the commit; copies in other processes' L1 expire.

The writer is a process of its own and commits by plain SQL. A lag runs from the moment at which it was told that its
commit is done until the last process's L1 has let go of the old value, which is looked at every 2 ms; L2 has by then,
because processes hear of a change from L2. What readers were given is told beside it: until the old value was read for
the last time, and until the last process had read the new one, which includes up to 20 ms between two reads of a key
and the time of the read itself.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.child import Child, child
from benchmarks.contest import BenchmarkFailed, Contest, Figures, Progress, Side
from benchmarks.freshness_lag import Lag, NeverSeen, Write, lags, spread_of
from benchmarks.freshness_reader import KEYS, TTL_S, Begin, End, Seen
from benchmarks.freshness_relay import RelayProcess, relay_process
from benchmarks.freshness_writer import WRITES_A_SECOND, Task
from benchmarks.own_servers import own_servers
from benchmarks.ratio import Compare, Target
from mlserve.cache.outcome import Tier

READERS = 3
PROVEN, TTL, DELETE = "proven", "ttl", "delete"
_LEAST_S = TTL_S
"""A turn is that long even where less is asked for, so that each copy that a TTL ends does end: two hundred writes."""
_PATIENCE_S = 2 * TTL_S + 5.0
_TARGET_MS = 100.0
_MS = 1000.0


@dataclass(frozen=True)
class _Measured:
    """Of one side, over all its rounds: what was read, and what L1 held."""

    read: list[Lag] = field(default_factory=list)
    held: list[Lag] = field(default_factory=list)
    tiers: Counter[str] = field(default_factory=Counter)


class _Race:
    """The processes: readers, a writer and a relay that works on one side only."""

    def __init__(self, readers: list[Child], writer: Child, relay: RelayProcess) -> None:
        self._readers = readers
        self._writer = writer
        self._relay = relay
        self._measured: dict[str, _Measured] = {}

    def begin(self) -> None:
        """What a contest measured before is another one's."""
        self._measured = {}

    def side(self, name: str) -> Side:
        """The 99th percentile of the time until no L1 held the old value, in milliseconds."""

        def measure(seconds: float) -> float:
            if name == PROVEN:
                self._relay.resume()
            try:
                turn = self._turn(name, max(seconds, _LEAST_S))
            finally:
                if name == PROVEN:
                    self._relay.pause()
            all_rounds = self._measured.setdefault(name, _Measured())
            all_rounds.read.extend(turn.read)
            all_rounds.held.extend(turn.held)
            all_rounds.tiers.update(turn.tiers)
            return spread_of([lag.new for lag in turn.held]).p99 * _MS

        return measure

    def figures(self) -> Figures:
        return {name: _figures(measured) for name, measured in self._measured.items()}

    def _turn(self, name: str, seconds: float) -> _Measured:
        for reader in self._readers:
            reader.tell(Begin(name, name == PROVEN))
        for reader in self._readers:
            reader.hear()
        writes = msgspec.convert(self._writer.ask(Task(name, seconds, delete=name == DELETE)), list[Write])
        newest = {write.key: write.version for write in writes}
        for reader in self._readers:
            reader.tell(End(newest, _PATIENCE_S))
        seen = [msgspec.convert(reader.hear(), Seen, str_keys=True) for reader in self._readers]
        try:
            read, held = lags(writes, [each.read for each in seen]), lags(writes, [each.held for each in seen])
        except NeverSeen as error:
            raise BenchmarkFailed(f"freshness: {name}: {error}") from error
        return _Measured(read, held, sum((Counter(each.tiers) for each in seen), Counter()))


def _figures(measured: _Measured) -> Mapping[str, float]:
    reads = measured.tiers.total()
    old = [lag.old for lag in measured.read]
    return {
        "writes": float(len(measured.read)),
        **_lags("evicted", [lag.new for lag in measured.held]),
        **_lags("old read", old),
        "old read, over 1 s %": 100 * spread_of(old).late,
        **_lags("new read", [lag.new for lag in measured.read]),
        **{f"{tier.upper()} %": 100 * measured.tiers[tier] / reads for tier in (Tier.L1, Tier.L2, Tier.L3)},
        "no value %": 100 * measured.tiers[Tier.DEFAULT] / reads,
    }


def _lags(what: str, lags_s: Sequence[float]) -> dict[str, float]:
    spread = spread_of(lags_s)
    quantiles = {"p50": spread.p50, "p99": spread.p99, "max": spread.max}
    return {f"{what}, {name} ms": value * _MS for name, value in quantiles.items()}


@contextmanager
def open_freshness(progress: Progress) -> Iterator[list[Contest]]:
    """Some fifteen seconds of preparation: servers, a database, five processes."""
    progress("start servers, readers and a relay", 0.0)
    with own_servers() as (_servers, environment), ExitStack() as stack:
        log = Path(environment["MLSERVE_VAR_DIR"]) / "freshness.log"
        with child("benchmarks.migrated", environment=environment, log=log) as migrations:
            migrations.hear()
        writer, *readers = (
            stack.enter_context(child(f"benchmarks.freshness_{what}", environment=environment, log=log))
            for what in ("writer", *("reader",) * READERS)
        )
        for each in (writer, *readers):
            each.hear()
        for name in (PROVEN, TTL, DELETE):
            writer.ask(name)
        race = _Race(readers, writer, stack.enter_context(relay_process(environment=environment, log=log)))
        yield [_contest(race, TTL, _TTL_IS), _contest(race, DELETE, _DELETE_IS)]


_LOAD = f"{READERS} processes read {KEYS} keys of which {WRITES_A_SECOND:g} a second are written by plain SQL"
_TTL_IS = f"the same with a TTL of {TTL_S:g} s instead, and nobody told; a longer TTL is later in proportion"
_DELETE_IS = (
    "the same with the copies dropped by the writer after each commit, in L2 and by a message to every process, a "
    f"TTL of {TTL_S:g} s, and no relay: quicker, as long as writers live and messages arrive"
)


def _contest(race: _Race, other: str, other_is: str) -> Contest:
    begun: list[bool] = []

    def prepare() -> None:
        if not begun:
            race.begin()
            begun.append(True)

    return Contest(
        name=f"freshness-{other}",
        ours_is=f"99th percentile from a commit until no process holds the old value, with a relay; {_LOAD}",
        other_is=other_is,
        unit="ms",
        compare=Compare.OURS,
        target=Target(_TARGET_MS, at_most=True),
        ours=race.side(PROVEN),
        other=race.side(other),
        prepare=prepare,
        figures=race.figures,
    )
