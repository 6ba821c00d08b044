"""L2 on the tests' own Valkey, with a clock and statistics that a test can look at."""

import random
import sys
from collections.abc import Iterator

import pytest
import redis

from mlserve.cache.breaker import Breaker
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.cache.tiers.wire import SingleNodeWire
from tests.cache.doubles import KeptStats
from tests.fixtures.clock import ManualClock

TIMEOUT_S = 0.25
"""Long enough that two busy cores do not look like a dead server."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> Breaker:
    return Breaker("l2", clock, random_source=random.Random(0))


@pytest.fixture
def stats() -> KeptStats:
    return KeptStats()


@pytest.fixture
def l2_client(redis_client: redis.Redis) -> Iterator[redis.Redis]:
    """As Django's alias connects: no retries, and a short time-out."""
    options = redis_client.connection_pool.connection_kwargs
    pool = redis.ConnectionPool(
        **{name: options[name] for name in ("host", "port", "password", "username", "db") if name in options},
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    )
    client = redis.Redis(connection_pool=pool)
    yield client
    client.close()


@pytest.fixture
def l2(l2_client: redis.Redis, breaker: Breaker, stats: KeptStats) -> L2Tier:
    return L2Tier(SingleNodeWire(lambda: l2_client, breaker), stats)


_find_classes: list[str] | None = None


def _watch(event: str, _arguments: object) -> None:
    if _find_classes is not None and event == "pickle.find_class":
        _find_classes.append(event)


@pytest.fixture(scope="session")
def _audit_hook() -> None:
    sys.addaudithook(_watch)  # stays for the rest of the process, but only looks while `unpickled` lives


@pytest.fixture
def unpickled(_audit_hook: None) -> Iterator[list[str]]:
    """Grows with every class that an unpickling looks for, in any thread."""
    global _find_classes
    _find_classes = []
    yield _find_classes
    _find_classes = None
