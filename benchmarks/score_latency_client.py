"""`python -m benchmarks.score_latency_client`: asks at moments that are set beforehand. A child of `score_latency.py`.

A process of its own: beside the benchmark's other threads it would wait for the interpreter, and call that latency.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from random import Random
from time import process_time

import msgspec

from benchmarks.child import say, told
from benchmarks.http_load import Connection, post, throughput
from benchmarks.open_loop import OpenLoop
from benchmarks.score_service import HOST, THREADS
from benchmarks.score_world import ScoreWorld

_CONNECTIONS = 64
"""More than wait at half load, however bad a moment is."""


class Service(msgspec.Struct):
    """The service that is asked."""

    port: int
    world: ScoreWorld


class Task(msgspec.Struct):
    """`path`: what is asked for. `rate_per_s`: on average; 0 for as fast as it is answered. `fresh`: ids not seen."""

    path: str
    seconds: float
    rate_per_s: float = 0.0
    fresh: bool = False


class Done(msgspec.Struct):
    """`ms`: of each answer, from the moment at which it was due. `cpu`: the share of one processor that asking took.

    `per_s`: answers a second.
    """

    ms: list[float]
    refused: int
    per_s: float
    cpu: float


class _Client:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._numbers = count()
        self._loop = OpenLoop(HOST, service.port, connections=_CONNECTIONS)
        self._random = Random(1)
        self._kept: dict[str, list[bytes]] = {}

    def perform(self, task: Task) -> Done:
        requests = self._fresh(task.path) if task.fresh else self._same(task.path)
        began = process_time()
        if not task.rate_per_s:
            per_s = throughput(
                HOST,
                self._service.port,
                connections=THREADS,
                seconds=task.seconds,
                next_request=lambda _: next(requests),
            )
            return Done([], 0, per_s, (process_time() - began) / task.seconds)
        outcome = self._loop.run(
            rate_per_s=task.rate_per_s,
            seconds=task.seconds,
            next_request=lambda: next(requests),
            random=self._random,
        )
        return Done(
            [1000 * took_s for took_s in outcome.answered_s],
            len(outcome.refused_s) + outcome.failed,
            len(outcome.answered_s) / outcome.seconds,
            outcome.cpu_s / outcome.seconds,
        )

    def warm(self) -> None:
        """Every pair is in L1."""
        connection, requests = Connection(HOST, self._service.port), self._fresh("/v1/scores")
        for _ in self._service.world.pairs:
            connection.ask(next(requests))
        connection.close()

    def _same(self, path: str) -> Iterator[bytes]:
        """By turns, made beforehand: a dry run may be repeated."""
        if path not in self._kept:
            self._kept[path] = [self._request(path, f"latency-{place}", place) for place in range(self._pairs)]
        kept = self._kept[path]
        return (kept[next(self._numbers) % len(kept)] for _ in iter(int, 1))

    def _fresh(self, path: str) -> Iterator[bytes]:
        return (self._request(path, f"latency-new-{number}", number) for number in self._numbers)

    @property
    def _pairs(self) -> int:
        return len(self._service.world.pairs)

    def _request(self, path: str, transaction_id: str, place: int) -> bytes:
        customer, merchant = self._service.world.pairs[place % self._pairs]
        body = {
            "transaction_id": transaction_id,
            "occurred_at": datetime.now(UTC),
            "customer_id": customer,
            "merchant_id": merchant,
            "amount": 20.0,
            "currency": "EUR",
        }
        return post(path=path, host=HOST, key=self._service.world.key, body=msgspec.json.encode(body))


def main() -> None:
    messages = told()
    client = _Client(msgspec.convert(next(messages), Service))
    say("ready")
    for message in messages:
        if message == "warm":
            client.warm()
            say("warm")
        else:
            say(client.perform(msgspec.convert(message, Task)))


if __name__ == "__main__":
    main()
