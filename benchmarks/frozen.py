"""`frozen`: what a Valkey that is frozen (SIGSTOP: connections stay open, nothing answers) adds to a score.

The first score after the freeze waits for its one timeout; then the breaker is open, and what L2 would have answered is
read from PostgreSQL. Not one score may fail, with the journal or without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.child import Child, child
from benchmarks.contest import BenchmarkFailed, Contest, Progress
from benchmarks.frozen_scorer import Task, Timed
from benchmarks.own_servers import own_servers
from benchmarks.ratio import Compare, Target
from benchmarks.score_world import ScoreWorld
from mlserve.embedded import Servers
from mlserve.settings import env

_PAIRS = 20
_SCORES = 200
_LEAST_MS = 0.001
"""A round needs figures above 0, and noise may leave none."""
_ONE_TIMEOUT_MS = env.CACHE_BUDGET_MS
_SLACK_MS = 10
"""To read from PostgreSQL what L2 did not answer, and for a timer to fire."""


class _Freezer:
    """Freezes and thaws the Valkey of one scorer, and keeps what was timed."""

    def __init__(self, servers: Servers, scorer: Child, pairs: list[tuple[str, str]]) -> None:
        self._servers = servers
        self._scorer = scorer
        self._pairs = pairs
        self.healthy_ms = self.first_ms = self.later_ms = 0.0

    def round(self) -> None:
        healthy = self._time(heal=True)
        self._servers.freeze("cache")
        try:
            frozen = self._time(heal=False)
        finally:
            self._servers.thaw("cache")
        self.healthy_ms = median(healthy.ms)
        self.first_ms, self.later_ms = frozen.ms[0], median(frozen.ms[1:])
        if healthy.failed or frozen.failed:
            raise BenchmarkFailed(f"frozen: {healthy.failed + frozen.failed} scores failed")

    def added_to_first(self, _seconds: float) -> float:
        return max(_LEAST_MS, self.first_ms - self.healthy_ms)

    def added_later(self, _seconds: float) -> float:
        return max(_LEAST_MS, self.later_ms - self.healthy_ms)

    def healthy(self, _seconds: float) -> float:
        return self.healthy_ms

    def _time(self, *, heal: bool) -> Timed:
        return msgspec.convert(self._scorer.ask(Task(_SCORES, self._pairs, heal)), Timed)


@contextmanager
def open_frozen(progress: Progress) -> Iterator[list[Contest]]:
    """Some twenty seconds of preparation: servers, data, a model."""
    progress("start servers, make data", 0.0)
    with own_servers() as (servers, environment):
        log = Path(environment["MLSERVE_VAR_DIR"]) / "frozen.log"
        with child("benchmarks.score_world", environment=environment, log=log) as filling:
            line = filling.hear()
            while "stage" in line:
                progress(f"prepare: {line['stage']}", 0.0)
                line = filling.hear()
        world = msgspec.convert(line, ScoreWorld)
        with child("benchmarks.frozen_scorer", environment=environment, log=log) as scorer:
            scorer.hear()
            freezer = _Freezer(servers, scorer, world.pairs[:_PAIRS])
            yield [
                Contest(
                    name=name,
                    ours_is=about,
                    other_is="the same score with a Valkey that answers (all of it, not what is added)",
                    unit="ms",
                    compare=Compare.OURS,
                    target=Target(bound, at_most=True),
                    ours=freezer.added_to_first if first else freezer.added_later,
                    other=freezer.healthy,
                    prepare=freezer.round,
                )
                for name, first, bound, about in (
                    (
                        "frozen-first",
                        True,
                        _ONE_TIMEOUT_MS + _SLACK_MS,
                        f"added to the first score after SIGSTOP: one timeout of {_ONE_TIMEOUT_MS} ms at most",
                    ),
                    ("frozen-later", False, 1, f"added to the {_SCORES - 1} scores after it, the breaker open; median"),
                )
            ]
