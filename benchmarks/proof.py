"""`proof`: what the proof of freshness costs those who read, in quiet operation.

The same reader, the same copies, the same relay beside it, a few writes a second; on one side copies serve only while
somebody vouches for them, on the other by age alone. One line with copies in L1, one with copies in L2 only. The third
asks how much had to be read from Postgres although a copy was there, because nobody vouched for it; its other side is
the same with the relay stopped, which shows that it can be seen.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

import msgspec
import psycopg

from benchmarks.child import Child, child
from benchmarks.contest import BenchmarkFailed, Contest, Figures, Progress, Side
from benchmarks.freshness_relay import RelayProcess, relay_process
from benchmarks.own_servers import own_servers
from benchmarks.proof_reader import GROUP, PAIRS, Task, Took
from benchmarks.ratio import Compare, Target
from mlserve.cache.outcome import Tier

WRITES_A_SECOND = 2.0
_LEAST_S = 0.2
_WITHOUT_RELAY_S = 2.5
"""Until after it has stopped nobody vouches for anything: the bound, and a second and a half."""
_L1_TARGET, _L2_TARGET = 1.25, 1.25
_MOST_UNPROVEN_PERCENT = 0.1
_WITH, _WITHOUT, _STOPPED = "with proof", "without", "relay stopped"
_UPDATE = 'UPDATE features_featurerow SET as_of = now() WHERE "group" = %s AND entity_id = %s'


@dataclass
class _Measured:
    """Of one side of a contest, over all its rounds: quantiles of each, sums of the rest."""

    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    tiers: Counter[str] = field(default_factory=Counter)
    unproven: Counter[str] = field(default_factory=Counter)

    @property
    def reads(self) -> int:
        return self.tiers.total()

    def add(self, took: Took) -> None:
        self.p50_us.append(took.p50_us)
        self.p99_us.append(took.p99_us)
        self.tiers.update(took.tiers)
        self.unproven.update(took.unproven)

    def figures(self) -> Mapping[str, float]:
        return {
            "p50 us": median(self.p50_us),
            "p99 us": median(self.p99_us),
            **{f"{tier.upper()} %": 100 * self.tiers[tier] / self.reads for tier in (Tier.L1, Tier.L2, Tier.L3)},
            **{f"unproven {tier.upper()} %": 100 * self.unproven[tier] / self.reads for tier in (Tier.L1, Tier.L2)},
            "groups read": float(self.reads),
        }


class _Quiet:
    """The reader, and what works beside it."""

    def __init__(self, reader: Child, relay: RelayProcess) -> None:
        self._reader = reader
        self._relay = relay

    def run(self, task: Task) -> Took:
        if task.relayed:
            return msgspec.convert(self._reader.ask(task), Took)
        self._relay.pause()
        try:
            return msgspec.convert(self._reader.ask(task), Took)
        finally:
            self._relay.resume()


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One contest: which figure of which tasks."""

    name: str
    about: str
    other_is: str
    ours: tuple[str, Task]
    other: tuple[str, Task]
    figure: Callable[[Took], float]
    unit: str
    compare: Compare
    target: Target

    def contest(self, quiet: _Quiet) -> Contest:
        measured: dict[str, _Measured] = {}

        def side(name: str, task: Task) -> Side:
            def measure(seconds: float) -> float:
                took = quiet.run(msgspec.structs.replace(task, seconds=max(seconds, task.seconds)))
                measured.setdefault(name, _Measured()).add(took)
                return self.figure(took)

            return measure

        def figures() -> Figures:
            return {name: all_rounds.figures() for name, all_rounds in measured.items()}

        return Contest(
            name=self.name,
            ours_is=self.about,
            other_is=self.other_is,
            unit=self.unit,
            compare=self.compare,
            target=self.target,
            ours=side(*self.ours),
            other=side(*self.other),
            figures=figures,
        )


def _p50_us(took: Took) -> float:
    return took.p50_us


def _unproven_percent(took: Took) -> float:
    """Of the groups that were read: those for which L2's copy did not count."""
    return 100 * took.unproven[Tier.L2] / sum(took.tiers.values())


def _cost(tier: Tier, *, use_l1: bool, target: float) -> _Line:
    return _Line(
        name=f"proof-{tier}",
        about=f"a read of six groups from {tier.upper()}, each proven; median of a request",
        other_is="the same reads of the same copies, by age alone",
        ours=(_WITH, Task(_LEAST_S, proven=True, use_l1=use_l1)),
        other=(_WITHOUT, Task(_LEAST_S, proven=False, use_l1=use_l1)),
        figure=_p50_us,
        unit="us/request",
        compare=Compare.OURS_OVER_OTHER,
        target=Target(target, at_most=True),
    )


_UNPROVEN = _Line(
    name="proof-unproven",
    about=f"groups read from PostgreSQL because nobody vouched for the copy, with {WRITES_A_SECOND:g} writes a second",
    other_is=f"the same in the first {_WITHOUT_RELAY_S:g} s after the relay has stopped",
    ours=(_WITH, Task(_LEAST_S, proven=True, use_l1=True)),
    other=(_STOPPED, Task(_WITHOUT_RELAY_S, proven=True, use_l1=True, relayed=False)),
    figure=_unproven_percent,
    unit="% of groups",
    compare=Compare.OURS,
    target=Target(_MOST_UNPROVEN_PERCENT, at_most=True),
)


@contextmanager
def _writing(database_url: str) -> Iterator[None]:
    """A few changes a second, each of them committed by plain SQL."""
    stop, random = threading.Event(), Random(1)
    failures: list[psycopg.Error] = []

    def write() -> None:
        try:
            with closing(psycopg.connect(database_url, autocommit=True)) as session:
                while not stop.wait(1 / WRITES_A_SECOND):
                    session.execute(_UPDATE, (GROUP, f"p{random.randrange(PAIRS)}"))
        except psycopg.Error as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise BenchmarkFailed(f"proof: nothing was written: {failures[0]}") from failures[0]


@contextmanager
def open_proof(progress: Progress) -> Iterator[list[Contest]]:
    """Some fifteen seconds of preparation: servers, a database, two processes."""
    progress("start servers, a reader and a relay", 0.0)
    with own_servers() as (_servers, environment):
        log = Path(environment["MLSERVE_VAR_DIR"]) / "proof.log"
        with child("benchmarks.migrated", environment=environment, log=log) as migrations:
            migrations.hear()
        with (
            child("benchmarks.proof_reader", environment=environment, log=log) as reader,
            relay_process(environment=environment, log=log) as relay,
            _writing(environment["DATABASE_URL"]),
        ):
            reader.hear()
            quiet = _Quiet(reader, relay)
            lines = (
                _cost(Tier.L1, use_l1=True, target=_L1_TARGET),
                _cost(Tier.L2, use_l1=False, target=_L2_TARGET),
                _UNPROVEN,
            )
            yield [line.contest(quiet) for line in lines]
