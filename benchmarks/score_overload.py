"""`overload`: ten times as many scores as the service can give, and what becomes of those that it admits.

One granian process as in the demo, behind its gate (`mlserve/api/admission.py`); every score is journaled. Capacity is
what a closed loop gets, by turns with each storm.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from statistics import median, quantiles
from threading import Event, Thread
from time import perf_counter

import psycopg

from benchmarks.contest import BenchmarkFailed, Contest, Figures, Progress
from benchmarks.http_load import throughput
from benchmarks.open_loop import OpenLoop, Outcome
from benchmarks.ratio import Compare, Target
from benchmarks.score_service import HOST, THREADS, ScoreService, score_service
from mlserve.settings import env

TIMES = 10
"""As many requests as the service can answer."""
IN_TIME_S = 0.5
"""A later answer is none: whoever pays with a card stands at the till."""
CALM = 0.5
"""Of the capacity: what the service is asked for before and after a storm."""
RECOVERED_WITHIN_S = 10.0
_NORMAL = 1.2
"""Times what it was before: a second's median swings by as much on a machine that does other things as well."""
ROUNDS = 3
"""So that a storm lasts: 1.5 s of the default 10, 30 s with --seconds 200."""
_CALM_S = 1.0
_LEAST_S = 0.2
_SAMPLE_S = 0.02
_NUMBER = "#" * 9
"""Where a transaction's number goes."""
_SESSIONS = """
SELECT count(*), count(*) FILTER (WHERE state = 'active') FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class _Storms:
    """The service, asked in two ways."""

    def __init__(self, service: ScoreService) -> None:
        self._service = service
        self._numbers = count()
        self._made = [self._prepared(pair) for pair in range(len(service.world.pairs))]
        self._loop = OpenLoop(HOST, service.port)
        self._capacity = 0.0
        self._calm_ms = 0.0
        self._recovered_s = 0.0
        self._storm = Outcome()
        self._most_sessions = self._most_active = 0

    def close(self) -> None:
        self._loop.close()

    def _request(self) -> bytes:
        """Made beforehand but for the transaction's id: a client that is busy takes the processor that it measures."""
        number = next(self._numbers)
        before, after = self._made[number % len(self._made)]
        return b"%b%09d%b" % (before, number, after)

    def _prepared(self, pair: int) -> tuple[bytes, bytes]:
        transaction = {**self._service.transaction("storm", pair), "transaction_id": f"storm-{_NUMBER}"}
        before, _, after = self._service.post("/v1/scores", transaction).partition(_NUMBER.encode())
        return before, after

    def capacity(self, seconds: float) -> float:
        """Scores a second of a closed loop, one connection for each score that is worked on at once."""
        self._capacity = throughput(
            HOST,
            self._service.port,
            connections=THREADS,
            seconds=max(seconds, _LEAST_S),
            next_request=lambda _: self._request(),
        )
        return self._capacity

    def storm(self, seconds: float) -> float:
        """Scores a second that were answered in time."""
        outcome = self._run(TIMES * self._capacity, max(seconds, _LEAST_S))
        self._storm = outcome
        if outcome.offered < 0.8 * TIMES * self._capacity * outcome.seconds:
            raise BenchmarkFailed(
                f"overload: {outcome.offered / outcome.seconds:.0f} requests a second were sent, meant were "
                f"{TIMES * self._capacity:.0f}: this machine cannot load the service so much"
            )
        return sum(took_s <= IN_TIME_S for took_s in outcome.answered_s) / outcome.seconds

    def calm_ms(self, _seconds: float) -> float:
        """The median latency of a second at half the capacity."""
        self._calm_ms = self._median_ms()
        return self._calm_ms

    def after_storm_ms(self, seconds: float) -> float:
        """The same after a storm: of the first second in which it is normal again, or of the last that it may take."""
        self.storm(seconds)
        ended = perf_counter()
        while True:
            took_ms = self._median_ms()
            after_s = perf_counter() - ended
            if took_ms <= _NORMAL * self._calm_ms or after_s > RECOVERED_WITHIN_S - _CALM_S:
                self._recovered_s = max(self._recovered_s, after_s)
                return took_ms

    def _median_ms(self) -> float:
        outcome = self._run(CALM * self._capacity, _CALM_S)
        return median(outcome.answered_s or [IN_TIME_S]) * 1000

    def sessions(self, seconds: float) -> float:
        """The most sessions of PostgreSQL that were open at one moment of a storm."""
        return self._sampled(lambda: self.storm(seconds))

    def calm_sessions(self, seconds: float) -> float:
        return self._sampled(lambda: self.calm_ms(seconds))

    def ready(self) -> None:
        """The capacity is known and the pairs are warm."""
        if not self._capacity:
            self.capacity(1.0)
            self.calm_ms(_CALM_S)

    def figures(self) -> Figures:
        """Of the last storm."""
        storm = self._storm
        return {
            "storm": {
                "offered_per_s": storm.offered / storm.seconds,
                "answered_per_s": len(storm.answered_s) / storm.seconds,
                "refused_per_s": len(storm.refused_s) / storm.seconds,
                "failed": float(storm.failed),
                "client_cpu": storm.cpu_s / storm.seconds,
                "answered_p50_ms": _percentile(storm.answered_s, 50),
                "answered_p99_ms": _percentile(storm.answered_s, 99),
                "refused_p50_ms": _percentile(storm.refused_s, 50),
                "refused_p99_ms": _percentile(storm.refused_s, 99),
            }
        }

    def recovery_figures(self) -> Figures:
        return {"storm": {"longest_recovery_s": self._recovered_s, "seconds_looked_at_s": _CALM_S}}

    def session_figures(self) -> Figures:
        return {"storm": {"most_sessions": float(self._most_sessions), "most_active": float(self._most_active)}}

    def _run(self, rate_per_s: float, seconds: float) -> Outcome:
        outcome = self._loop.run(rate_per_s=rate_per_s, seconds=seconds, next_request=self._request)
        if outcome.failed:
            raise BenchmarkFailed(f"overload: {outcome.failed} requests were answered with neither a score nor a 503")
        return outcome

    def _sampled(self, work: Callable[[], float]) -> float:
        """The most sessions while `work` goes on; also noted for the figures."""
        done = Event()
        counts: list[tuple[int, int]] = []

        def sample() -> None:
            with psycopg.connect(self._service.database_url, autocommit=True) as connection:
                while not done.wait(_SAMPLE_S):
                    row = connection.execute(_SESSIONS).fetchone()
                    assert row is not None
                    counts.append((int(row[0]), int(row[1])))

        sampler = Thread(target=sample)
        sampler.start()
        try:
            work()
        finally:
            done.set()
            sampler.join()
        if not counts:
            raise BenchmarkFailed("overload: PostgreSQL did not say how many sessions there were")
        most = max(sessions for sessions, _ in counts)
        self._most_sessions = max(self._most_sessions, most)
        self._most_active = max(self._most_active, *(active for _, active in counts))
        return float(most)


@contextmanager
def open_overload(progress: Progress) -> Iterator[list[Contest]]:
    """Makes data of its own in a database of its own: some ten seconds."""
    with score_service(progress) as service:
        storms = _Storms(service)
        storm = f"POST /v1/scores, {TIMES} times as many as the capacity, whatever is answered"
        calm = f"the same at {CALM:g} times the capacity"
        try:
            yield [
                Contest(
                    name="overload-goodput",
                    ours_is=f"{storm}: scores within {IN_TIME_S:g} s",
                    other_is=f"the capacity: {THREADS} connections, each of which asks again when it was answered",
                    unit="scores/s",
                    compare=Compare.OURS_OVER_OTHER,
                    target=Target(0.8),
                    ours=storms.storm,
                    other=storms.capacity,
                    prepare=storms.ready,
                    figures=storms.figures,
                    rounds=ROUNDS,
                ),
                Contest(
                    name="overload-recovery",
                    ours_is=f"the median latency at {CALM:g} times the capacity, within {RECOVERED_WITHIN_S:g} s"
                    " of a storm",
                    other_is="the same without a storm before",
                    unit="ms",
                    compare=Compare.OURS_OVER_OTHER,
                    target=Target(1.5, at_most=True),
                    ours=storms.after_storm_ms,
                    other=storms.calm_ms,
                    prepare=storms.ready,
                    figures=storms.recovery_figures,
                    rounds=ROUNDS,
                ),
                Contest(
                    name="overload-sessions",
                    ours_is=f"the most sessions of PostgreSQL, the relay's among them, during {storm}",
                    other_is=calm,
                    unit="sessions",
                    compare=Compare.OURS,
                    target=Target(env.DB_POOL_MAX_SIZE, at_most=True),
                    ours=storms.sessions,
                    other=storms.calm_sessions,
                    prepare=storms.ready,
                    figures=storms.session_figures,
                    rounds=ROUNDS,
                ),
            ]
        finally:
            storms.close()


def _percentile(values: list[float], percent: int) -> float:
    """In milliseconds; 0 for none."""
    if len(values) < 2:
        return 1000 * sum(values)
    return 1000 * quantiles(values, n=100, method="inclusive")[percent - 1]
