"""`memory`: bytes that an entity takes in Redis, against other layouts of the same features.

A layout is written for all entities into an empty Valkey of the benchmark's own, and `used_memory` is looked at before
and after; so the price has all in it, keys, tables and the allocator's rounding. Nothing is timed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count, islice
from random import Random
from struct import pack, unpack
from time import sleep
from typing import TypeVar

import redis

from benchmarks.contest import BenchmarkFailed, Contest, Progress
from benchmarks.layouts import VIEW, Hash, as_feast, as_json
from benchmarks.own_servers import own_servers
from benchmarks.ratio import Compare, Target
from mlserve.cache.breaker import Breaker
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.policy import Policy
from mlserve.cache.stats import NullStats
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.cache.tiers.wire import SingleNodeWire

ENTITIES = 20_000
FEATURES = 50
POPULATIONS = 3
"""Different ones, each measured once; the rounds go around them, since a layout of the same takes the same."""
_KEPT_S = 86_400
_AT_ONCE = 100
"""Entities of one round trip."""
_T = TypeVar("_T")
_PATIENCE_S = 10.0
_LOOKS, _BETWEEN_LOOKS_S = 50, 0.1
_COST_S = 0.0004
"""What reading the source took, to the microsecond; it is part of a record."""


def features(random: Random) -> tuple[float, ...]:
    """Of one entity: a third counts, a third amounts with two decimals, a third shares and components as float32."""
    counts, amounts = -(-FEATURES // 3), -(-FEATURES // 3)
    return (
        *(float(int(random.expovariate(1 / 30))) for _ in range(counts)),
        *(round(random.gammavariate(2, 25) * random.choice(_SPANS), 2) for _ in range(amounts)),
        *(unpack("<f", pack("<f", random.uniform(-1, 1)))[0] for _ in range(FEATURES - counts - amounts)),
    )


_SPANS = (1, 1, 1, 10, 30)
"""Amounts of one payment, and some of a week's and a month's."""


class _Memory:
    """Bytes per entity of each layout, in a Valkey that is emptied for every one."""

    def __init__(self, client: "redis.Redis", entities: int) -> None:
        self._client = client
        self._entities = entities
        self._clock = SystemClock()
        self._breaker = Breaker("bench", self._clock, random_source=Random(1))
        self._tier = L2Tier(SingleNodeWire(lambda: client, self._breaker), NullStats())
        self._policies = {
            VIEW: Policy(
                namespace=VIEW, schema=1, fresh_for_s=_KEPT_S, grace_s=0, negative_ttl_s=0, fixed_values=FEATURES
            )
        }
        self._populations = count()
        self._population = 0
        self.ours, self.json, self.feast = (
            self._side(cache(bytes_of)) for bytes_of in (self._ours, self._json, self._feast)
        )

    def teach(self) -> None:
        """A server that has run our script and built its tables once has paid what is paid once."""
        self._ours(0)

    def next_population(self) -> None:
        self._population = next(self._populations) % POPULATIONS

    def _side(self, bytes_of: Callable[[int], float]) -> Callable[[float], float]:
        return lambda _seconds: bytes_of(self._population)

    def _people(self, population: int) -> Iterator[tuple[str, tuple[float, ...]]]:
        random = Random(population)
        return ((f"C{number:07d}", features(random)) for number in range(self._entities))

    def _ours(self, population: int) -> float:
        before, written_at, entries = self._empty(), round(self._clock.now(), 3), {}
        for people in _in_batches(self._people(population)):
            entries = {
                Key("customer", name, VIEW): Entry(1_000_000, written_at - 5, written_at, values, _COST_S)
                for name, values in people
            }
            self._tier.put_many(entries, self._policies)
        taken = self._taken_since(before)
        if self._tier.get_many(list(entries), self._policies) != entries:  # the last of them
            raise BenchmarkFailed("memory: Redis did not return what was put there")
        return taken

    def _json(self, population: int) -> float:
        return self._hashes(as_json(name, values) for name, values in self._people(population))

    def _feast(self, population: int) -> float:
        now = self._clock.now()
        return self._hashes(as_feast(name, values, as_of=now) for name, values in self._people(population))

    def _hashes(self, hashes: Iterable[Hash]) -> float:
        before = self._empty()
        for some in _in_batches(hashes):
            with self._client.pipeline(transaction=False) as pipeline:
                for key, fields in some:
                    pipeline.hset(key, mapping=fields)  # type: ignore[arg-type]
                    pipeline.expire(key, _KEPT_S)
                pipeline.execute()
        return self._taken_since(before)

    def _empty(self) -> int:
        self._client.execute_command("FLUSHALL", "SYNC")
        self._client.execute_command("MEMORY", "PURGE")
        return self._settled_bytes()

    def _taken_since(self, before: int) -> float:
        taken = self._settled_bytes() - before
        if self._client.dbsize() != self._entities:
            raise BenchmarkFailed(f"memory: {self._client.dbsize()} entities are held, not {self._entities}")
        return taken / self._entities

    def _settled_bytes(self) -> int:
        """Once it stands still: the buffers of connections and tables that are being moved go first."""
        self._client.connection_pool.disconnect()
        seen = -1
        for _ in range(_LOOKS):
            used = int(self._client.info("memory")["used_memory"])
            if used == seen:
                return used
            seen = used
            sleep(_BETWEEN_LOOKS_S)
        raise BenchmarkFailed("memory: the memory that Valkey uses does not come to rest")


def _in_batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    return iter(lambda: list(islice(rest, _AT_ONCE)), [])


def contests(client: "redis.Redis", *, entities: int = ENTITIES) -> list[Contest]:
    """`client`: of a server that may be emptied."""
    memory = _Memory(client, entities)
    memory.teach()
    return [
        Contest(
            name=name,
            ours_is=f"L2Tier.put_many of one group of {FEATURES} features; {entities:,} entities",
            other_is=other_is,
            unit="bytes/entity",
            compare=Compare.OURS_OVER_OTHER,
            target=Target(bound, at_most=True),
            ours=memory.ours,
            other=other,
            prepare=memory.next_population,
        )
        for name, bound, other, other_is in (
            ("memory-json", 0.5, memory.json, "a hash with a field of JSON for each feature"),
            (
                "memory-feast",
                1 / 3,
                memory.feast,
                "Feast's layout: a field for each feature, doubles, one feature view",
            ),
        )
    ]


@contextmanager
def open_memory(progress: Progress) -> Iterator[list[Contest]]:
    """A Valkey of its own with the settings of the embedded cache."""
    progress("start Valkey", 0.0)
    with own_servers(("cache",)) as (_servers, environment):
        client = redis.Redis.from_url(environment["REDIS_CACHE_URL"], socket_timeout=_PATIENCE_S)
        try:
            yield contests(client)
        except redis.RedisError as error:
            raise BenchmarkFailed(f"memory: Valkey does not answer or refuses: {error}") from error
        finally:
            client.close()
