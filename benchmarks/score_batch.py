"""`batch`: 100 transactions in one `POST /v1/scores/batch`, against 100 single calls; the same server, the same client.

As many kept connections as the server works on at once ask as fast as they are answered: four with single calls, two
with batches. Twice: as dry runs, which is the scoring itself, and with the journal. There single calls already share
their commits with each other, and PostgreSQL continues the lists of customers' recent transactions
(`features/ingest.py`): what is left is mostly the web process' own work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from time import monotonic

import msgspec

from benchmarks.contest import BenchmarkFailed, Contest, Progress, Side
from benchmarks.http_load import Connection, throughput
from benchmarks.ratio import Compare, Target
from benchmarks.score_service import HOST, THREADS, ScoreService, score_service
from benchmarks.scores import SCORES, Scores

SIZE = 100
AT_ONCE = THREADS // 2
"""Batches that the web process works on. More connections gain little, and some are refused: a batch may wait 30 ms."""
BATCHES = "/v1/scores/batch"
_TARGET, _JOURNAL_TARGET = Target(10), Target(4)
_WARM_FOR_S = 20.0
"""Customers' activity counts as fresh for 60 s, and a dry run renews nothing."""
_DRY_RUN = "?dry_run=true"


class Batches:
    """The requests of one run, as `Scores` has them: they walk through the same pairs of customer and merchant."""

    def __init__(self, service: ScoreService) -> None:
        self._service = service
        self._numbers = count()
        self._warmed_at = float("-inf")
        self._dry_runs: list[bytes] = []

    def _request(self, first: int, options: str = "") -> bytes:
        name = "batch-dry" if options else "batch"  # as in `Scores.request`
        transactions = [self._service.transaction(name, number) for number in range(first, first + SIZE)]
        return self._service.post(BATCHES + options, {"transactions": transactions})

    def warm(self) -> None:
        """Every pair is in L1 and L2, and stays fresh for longer than a round."""
        if monotonic() - self._warmed_at < _WARM_FOR_S:
            return
        firsts = range(0, len(self._service.world.pairs), SIZE)
        connection = Connection(HOST, self._service.port)
        for _ in firsts:
            connection.ask(self.journaled(0))
        connection.close()
        self._dry_runs = [self._request(first, _DRY_RUN) for first in firsts]
        self._warmed_at = monotonic()

    def journaled(self, _connection: int) -> bytes:
        """Transactions that were not seen before, in no single call either."""
        return self._request(next(self._numbers) * SIZE)

    def dry_run(self, _connection: int) -> bytes:
        return self._dry_runs[next(self._numbers) % len(self._dry_runs)]

    def side(self, next_request: Callable[[int], bytes]) -> Side:
        """Transactions a second."""

        def measure(seconds: float) -> float:
            answers = throughput(
                HOST, self._service.port, connections=AT_ONCE, seconds=seconds, next_request=next_request
            )
            return answers * SIZE

        return measure

    def check_warm(self) -> None:
        """Every item of a batch is scored out of the cache: Postgres is not asked."""
        connection = Connection(HOST, self._service.port)
        answer = msgspec.json.decode(connection.ask(self._request(0, f"{_DRY_RUN}&include=trace")))
        connection.close()
        wrong = [result for result in answer["results"] if result["status"] != 200 or result["answer"]["degraded"]]
        asked = {tier["tier"] for tier in answer["results"][0].get("answer", {}).get("trace", ())}
        if wrong or "l1" not in asked or "l3" in asked:
            raise BenchmarkFailed(f"batch: the scores were not warm: {sorted(asked)}, {wrong[:1]}")


@contextmanager
def open_batch(progress: Progress) -> Iterator[list[Contest]]:
    """Makes data of its own in a database of its own: some ten seconds."""
    with score_service(progress) as service:
        batches, scores = Batches(service), Scores(service)

        def warm() -> None:
            batches.warm()
            scores.warm()

        yield [
            Contest(
                name=name,
                ours_is=f"{SIZE} transactions in one POST {BATCHES}{what}; granian, 1 process, {THREADS} threads, "
                f"{AT_ONCE} connections",
                other_is=f"{SIZE} times POST {SCORES}{what}; the same process and client, {THREADS} connections",
                unit="transactions/s",
                compare=Compare.OURS_OVER_OTHER,
                target=target,
                ours=batches.side(batch),
                other=scores.side(single),
                prepare=warm,
                check=batches.check_warm,
            )
            for name, what, batch, single, target in (
                ("batch-dry-run", _DRY_RUN, batches.dry_run, scores.dry_run, _TARGET),
                ("batch-journal", "", batches.journaled, scores.journaled, _JOURNAL_TARGET),
            )
        ]
