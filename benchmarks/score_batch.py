"""`batch`: 100 transactions in one `POST /v1/scores/batch`, against 100 single calls; the same server, the same client.

As many kept connections as the server has threads ask as fast as they are answered. Twice: as dry runs, which is the
scoring itself, and with the journal. There single calls already share their commits with each other, and what is left
is PostgreSQL's: each transaction has it derive a customer's recent history anew, one by one or a hundred at a time.
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

SIZE = 100
_TARGET, _JOURNAL_TARGET = Target(10), Target(4)
_SINGLE, _BATCH = "/v1/scores", "/v1/scores/batch"
_WARM_FOR_S = 20.0
"""Customers' activity counts as fresh for 60 s, and a dry run renews nothing."""
_DRY_RUN = "?dry_run=true"


class _Requests:
    """Of one run. Single calls and batches walk through the same pairs of customer and merchant."""

    def __init__(self, service: ScoreService) -> None:
        self._service = service
        self._numbers = count()
        self._warmed_at = float("-inf")
        self._dry_singles: list[bytes] = []
        self._dry_batches: list[bytes] = []

    def _single(self, number: int, options: str = "") -> bytes:
        return self._service.post(_SINGLE + options, self._service.transaction("bench", number))

    def _batch(self, first: int, options: str = "") -> bytes:
        transactions = [self._service.transaction("bench", number) for number in range(first, first + SIZE)]
        return self._service.post(_BATCH + options, {"transactions": transactions})

    def warm(self) -> None:
        """Every pair is in L1 and L2, and stays fresh for longer than a round."""
        if monotonic() - self._warmed_at < _WARM_FOR_S:
            return
        connection, pairs = Connection(HOST, self._service.port), len(self._service.world.pairs)
        for _ in range(0, pairs, SIZE):
            connection.ask(self.batch(0))
        connection.close()
        self._dry_singles = [self._single(number, _DRY_RUN) for number in range(pairs)]
        self._dry_batches = [self._batch(first, _DRY_RUN) for first in range(0, pairs, SIZE)]
        self._warmed_at = monotonic()

    def batch(self, _connection: int) -> bytes:
        """Transactions that were not seen before."""
        return self._batch(next(self._numbers) * SIZE)

    def single(self, _connection: int) -> bytes:
        """The same, one of them; above all numbers that batches get."""
        return self._single(10**9 + next(self._numbers))

    def dry_batch(self, _connection: int) -> bytes:
        return self._dry_batches[next(self._numbers) % len(self._dry_batches)]

    def dry_single(self, _connection: int) -> bytes:
        return self._dry_singles[next(self._numbers) % len(self._dry_singles)]

    def side(self, next_request: Callable[[int], bytes], *, size: int) -> Side:
        """Transactions a second."""

        def measure(seconds: float) -> float:
            answers = throughput(
                HOST, self._service.port, connections=THREADS, seconds=seconds, next_request=next_request
            )
            return answers * size

        return measure

    def check(self) -> None:
        """Every item of a batch is scored out of the cache: Postgres is not asked."""
        connection = Connection(HOST, self._service.port)
        answer = msgspec.json.decode(connection.ask(self._batch(0, f"{_DRY_RUN}&include=trace")))
        connection.close()
        wrong = [result for result in answer["results"] if result["status"] != 200 or result["answer"]["degraded"]]
        asked = {tier["tier"] for tier in answer["results"][0].get("answer", {}).get("trace", ())}
        if wrong or "l1" not in asked or "l3" in asked:
            raise BenchmarkFailed(f"batch: the scores were not warm: {sorted(asked)}, {wrong[:1]}")


@contextmanager
def open_batch(progress: Progress) -> Iterator[list[Contest]]:
    """Makes data of its own in a database of its own: some ten seconds."""
    with score_service(progress) as service:
        requests = _Requests(service)
        yield [
            Contest(
                name=name,
                ours_is=f"{SIZE} transactions in one POST {_BATCH}{what}; granian, 1 process, {THREADS} threads, "
                f"{THREADS} connections",
                other_is=f"{SIZE} times POST {_SINGLE}{what}; the same process, client and number of connections",
                unit="transactions/s",
                compare=Compare.OURS_OVER_OTHER,
                target=target,
                ours=requests.side(batch, size=SIZE),
                other=requests.side(single, size=1),
                prepare=requests.warm,
                check=requests.check,
            )
            for name, what, batch, single, target in (
                ("batch-dry-run", _DRY_RUN, requests.dry_batch, requests.dry_single, _TARGET),
                ("batch-journal", "", requests.batch, requests.single, _JOURNAL_TARGET),
            )
        ]
