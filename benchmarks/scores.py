"""`score`: warm `POST /v1/scores` over HTTP, against an empty REST framework view on the same server.

One granian process (WSGI) serves both, behind the same middleware; a few kept connections ask as fast as they are
answered. Twice: as a dry run, which is the scoring itself, and with the journal, which commits every
decision to PostgreSQL before it is acknowledged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from time import monotonic

import msgspec

from benchmarks.contest import BenchmarkFailed, Contest, Progress, Side
from benchmarks.http_load import Connection, throughput
from benchmarks.ratio import Compare, Target
from benchmarks.score_service import COMMITTING, HOST, THREADS, ScoreService, score_service

_TARGET = Target(0.6)
SCORES = "/v1/scores"
_EMPTY = "/v1/scores-empty"
"""As in `server_urls.py`, which only the server can import."""
_COLD_SHARE = 0.1
"""The relay may get no processor for a moment, and nothing in memory is vouched for then."""
_WARM_FOR_S = 20.0
"""Customers' activity counts as fresh for 60 s, and a dry run renews nothing."""


class Scores:
    """The requests of one run."""

    def __init__(self, service: ScoreService) -> None:
        self._service = service
        self._numbers = count()
        self._warmed_at = float("-inf")
        self._dry_runs: list[bytes] = []
        self._empty = self.request(_EMPTY, 0)

    def request(self, path: str, number: int) -> bytes:
        """A dry run has an id that nobody decides on: what is known with other contents is refused."""
        name = "bench-dry" if "dry_run" in path else "bench"
        return self._service.post(path, self._service.transaction(name, number))

    def warm(self) -> None:
        """Every pair is in L1 and L2, and stays fresh for longer than a round."""
        if monotonic() - self._warmed_at < _WARM_FOR_S:
            return
        connection = Connection(HOST, self._service.port)
        for _ in self._service.world.pairs:
            connection.ask(self.journaled(0))
        connection.close()
        self._dry_runs = [
            self.request(f"{SCORES}?dry_run=true", number) for number in range(len(self._service.world.pairs))
        ]
        self._warmed_at = monotonic()

    def journaled(self, _connection: int) -> bytes:
        """A transaction that was not seen before."""
        return self.request(SCORES, next(self._numbers))

    def dry_run(self, _connection: int) -> bytes:
        return self._dry_runs[next(self._numbers) % len(self._dry_runs)]

    def empty(self, _connection: int) -> bytes:
        return self._empty

    def side(self, next_request: Callable[[int], bytes], *, connections: int = THREADS) -> Side:
        def measure(seconds: float) -> float:
            return throughput(
                HOST, self._service.port, connections=connections, seconds=seconds, next_request=next_request
            )

        return measure

    def check_warm(self) -> None:
        """L1 answers for nearly everything, as in the demo: neither Redis nor Postgres is asked."""
        connection = Connection(HOST, self._service.port)
        numbers = range(0, len(self._service.world.pairs), 10)
        cold = []
        for number in numbers:
            answer = msgspec.json.decode(connection.ask(self.request(f"{SCORES}?dry_run=true&include=trace", number)))
            if answer["degraded"] or {"l2", "l3"} & {tier["tier"] for tier in answer["trace"]}:
                cold.append(answer)
        connection.close()
        if len(cold) > _COLD_SHARE * len(numbers):
            raise BenchmarkFailed(
                f"score: {len(cold)} of {len(numbers)} scores were not warm: {cold[0]['trace']}, "
                f"{cold[0]['degraded_reasons']}"
            )


@contextmanager
def open_scores(progress: Progress) -> Iterator[list[Contest]]:
    """Makes data of its own in a database of its own: some ten seconds."""
    with score_service(progress) as service:
        scores = Scores(service)
        yield [
            Contest(
                name=name,
                ours_is=f"POST {SCORES}{what}; granian, 1 process, {THREADS} scores at once, {connections} connections",
                other_is="POST to an empty REST framework view without a key, same process, same middleware",
                unit="requests/s",
                compare=Compare.OURS_OVER_OTHER,
                target=_TARGET,
                ours=scores.side(next_request, connections=connections),
                other=scores.side(scores.empty, connections=connections),
                prepare=scores.warm,
                check=scores.check_warm,
            )
            for name, what, next_request, connections in (
                ("score-dry-run", "?dry_run=true, warm", scores.dry_run, THREADS),
                ("score-journal", ", warm, each decision committed to PostgreSQL", scores.journaled, COMMITTING),
            )
        ]
