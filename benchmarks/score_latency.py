"""`latency`: how long an answer takes while the service has half of what it can do to do.

One granian process as in the demo. Its capacity is measured first in each round, by a closed loop; then requests come
at half of that rate, at the moments of a Poisson process, and the time of each counts from the moment at which it was
due, whether it could be sent then or not. A process of its own asks; how much of a processor that takes is in the
figures, because on two of them it is taken from the service.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic

import msgspec

from benchmarks.child import Child, child
from benchmarks.contest import BenchmarkFailed, Contest, Figures, Progress
from benchmarks.ratio import Compare, Target
from benchmarks.score_latency_client import Done, Service, Task
from benchmarks.score_service import THREADS, score_service
from mlserve.settings import env

_LOAD = 0.5
_CAPACITY_SHARE = 0.2
"""Of each side's time: for its capacity."""
_LEAST_S = 0.2
_SCORES, _EMPTY = "/v1/scores", "/v1/scores-empty"
_NONE = Target(0)
"""Milliseconds are the machine's matter, and nothing is promised of their ratio: that it is measured is all."""
_ROUNDS = 3
"""So that a round lasts: percentiles need answers."""
_WARM_FOR_S = 20.0
"""Customers' activity counts as fresh for 60 s, and a dry run renews nothing."""


class _Warmth:
    """Of the pairs that are asked for."""

    def __init__(self, client: Child) -> None:
        self._client = client
        self._at = float("-inf")

    def renew(self) -> None:
        if monotonic() - self._at > _WARM_FOR_S:
            self._client.ask("warm")
            self._at = monotonic()


class _Asked:
    """One kind of request, and all that became of it at half load."""

    def __init__(self, client: Child, path: str, *, fresh: bool = False) -> None:
        self._client = client
        self._path = path
        self._fresh = fresh
        self._runs: list[Done] = []
        self._capacities: list[float] = []

    def side(self, seconds: float) -> float:
        """The median latency in milliseconds."""
        capacity = self._perform(max(_LEAST_S, seconds * _CAPACITY_SHARE), 0.0).per_s
        run = self._perform(max(_LEAST_S, seconds * (1 - _CAPACITY_SHARE)), capacity * _LOAD)
        if len(run.ms) < 2:
            raise BenchmarkFailed(f"latency: {len(run.ms)} of the requests to {self._path} were answered")
        self._capacities.append(capacity)
        self._runs.append(run)
        return median(run.ms)

    def figures(self) -> dict[str, float]:
        ms = [took_ms for run in self._runs for took_ms in run.ms]
        percentiles = quantiles(ms, n=1000, method="inclusive")
        return {
            "capacity_per_s": median(self._capacities),
            "asked_per_s": median(run.per_s for run in self._runs),
            "p50_ms": percentiles[499],
            "p99_ms": percentiles[989],
            "p99.9_ms": percentiles[998],
            "max_ms": max(ms),
            "answers": float(len(ms)),
            "refused": float(sum(run.refused for run in self._runs)),
            "client_cpu": median(run.cpu for run in self._runs),
        }

    def _perform(self, seconds: float, rate_per_s: float) -> Done:
        return msgspec.convert(self._client.ask(Task(self._path, seconds, rate_per_s, self._fresh)), Done)


@contextmanager
def open_latency(progress: Progress) -> Iterator[list[Contest]]:
    """Makes data of its own in a database of its own: some ten seconds."""
    with score_service(progress) as service, TemporaryDirectory(prefix="mlserve-bench-") as folder:
        log = Path(folder) / "client.log"
        with child("benchmarks.score_latency_client", environment=env.child_environment(), log=log) as client:
            client.ask(Service(service.port, service.world))
            warmth = _Warmth(client)
            yield [
                _contest(name, about, _Asked(client, path, fresh=fresh), _Asked(client, _EMPTY), warmth)
                for name, about, path, fresh in (
                    ("latency-dry-run", "?dry_run=true, warm", f"{_SCORES}?dry_run=true", False),
                    ("latency-journal", ", warm, each decision committed to PostgreSQL", _SCORES, True),
                )
            ]


def _contest(name: str, about: str, ours: _Asked, other: _Asked, warmth: _Warmth) -> Contest:
    def figures() -> Figures:
        return {"ours": ours.figures(), "other": other.figures()}

    return Contest(
        name=name,
        ours_is=f"POST {_SCORES}{about}, {_LOAD:g} times as often as {THREADS} connections get answers without a pause:"
        " the median latency",
        other_is="POST to an empty REST framework view without a key, half as often as it can be had as well",
        unit="ms",
        compare=Compare.OURS_OVER_OTHER,
        target=_NONE,
        ours=ours.side,
        other=other.side,
        prepare=warmth.renew,
        rounds=_ROUNDS,
        figures=figures,
    )
