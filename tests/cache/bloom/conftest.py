"""A Redis with streams and generations of filters, and processes that follow them."""

from collections.abc import Iterator

import pytest
import redis

from mlserve.cache.bloom import BloomMembership, IdFilter
from mlserve.cache.bloom_follower import Follower
from mlserve.cache.bloom_generation import Generation, encode, hash_key
from mlserve.cache.bloom_redis import (
    BloomStore,
)
from tests.fixtures.clock import ManualClock

SECRET = b"a secret of the project"


class Redis:
    """The store, and builds that know nothing of Postgres."""

    def __init__(self, client: redis.Redis, clock: ManualClock) -> None:
        self.client, self.clock = client, clock
        self.store = BloomStore(lambda: client)

    def build(self, *customers: str, name: str = "one") -> None:
        self.save(self.begin(*customers, name=name))

    def begin(self, *customers: str, name: str = "one") -> Generation:
        """With the position of now, not saved yet."""
        held = IdFilter.for_count(len(customers), hash_key(name, SECRET))
        held.add_all(customers)
        position = self.store.begin(now=self.clock.now())
        return Generation(name, self.clock.now(), position, {"customer": len(customers)}, {"customer": held})

    def save(self, generation: Generation) -> None:
        self.store.save(encode(generation, SECRET), generation.name)

    def process(self, *, reachable: bool = True) -> Follower:
        return Follower(
            membership=BloomMembership(self.clock),
            store=self.store,
            clock=self.clock,
            secret=SECRET,
            reachable=lambda: reachable,
        )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def at(redis_client: redis.Redis, clock: ManualClock) -> Iterator[Redis]:
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    yield Redis(redis_client, clock)
    redis_client.config_set("maxmemory", "0")


@pytest.fixture
def reader(at: Redis) -> Follower:
    """A process that follows a generation with the customer c1."""
    at.build("c1")
    follower = at.process()
    follower.poll()
    assert says_no(follower, "c2") and not says_no(follower, "c1")
    return follower


def says_no(follower: Follower, customer: str) -> bool:
    return not follower.membership.may_exist("customer", customer)
