"""L2 behind Sentinels: django-redis' connection factory with what many threads need on top, and the wire."""

import copy
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from django_redis.pool import SentinelConnectionFactory
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from mlserve.cache.breaker import Breaker
from mlserve.cache.clock import Clock
from mlserve.cache.tiers.wire import UNREACHABLE, SingleNodeWire

FOLLOW_INTERVAL_S = 1.0
"""How long processes may write to two primaries after an operator has replaced a working one."""
_making = threading.Lock()


class SentinelFactory(SentinelConnectionFactory):
    """One pool per process, shared by its threads.

    OPTIONS: those of django-redis, and SENTINEL_SERVICE, the name that the Sentinels watch.
    """

    _sentinel: Any

    def __init__(self, options: dict[str, Any]) -> None:
        # Without it redis-py asks a dead Sentinel four times, with pauses, before it asks the next one.
        once = {"retry": Retry(NoBackoff(), 0)}
        super().__init__({**options, "SENTINEL_KWARGS": {**options.get("SENTINEL_KWARGS", {}), **once}})
        self._sentinel = _Sentinels(self._sentinel)
        self._service: str = options["SENTINEL_SERVICE"]

    def get_or_create_connection_pool(self, params: dict[str, Any]) -> Any:
        # Not by the service alone: two installations can have given theirs one name.
        key = f"{params['url']} by {self.options['SENTINELS']}"
        with _making:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self.get_connection_pool(params)
                pool.service_name = pool.proxy.service_name = self._service  # a URL's host is in lower case
        return pool


class _Sentinels:
    """For all threads of a pool. redis-py's own moves the Sentinel that answered to the front by an exchange of two
    places that can lose a Sentinel if two threads do it at once; here each discovery has a list of its own."""

    def __init__(self, sentinel: Sentinel) -> None:
        self._latest = sentinel

    def discover_master(self, service_name: str) -> Any:
        own = copy.copy(self._latest)
        own.sentinels = list(own.sentinels)
        found = own.discover_master(service_name)
        self._latest = own
        return found

    def discover_slaves(self, service_name: str) -> Any:
        return self._latest.discover_slaves(service_name)


class SentinelWire(SingleNodeWire):
    """Follows the primary. Connections tell when a primary is gone or has become a replica; but one that was replaced
    while it worked goes on taking writes for some ten seconds, and processes would use different primaries."""

    def __init__(self, connect: Callable[[], "redis.Redis"], breaker: Breaker, clock: Clock) -> None:
        super().__init__(connect, breaker)
        self._clock = clock
        self._look_at = float("-inf")

    def probe(self) -> None:
        """Also asks the Sentinels, once in `FOLLOW_INTERVAL_S`, whether there is another primary."""
        super().probe()
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + FOLLOW_INTERVAL_S
            with suppress(*UNREACHABLE):  # without Sentinels the primary that is known goes on
                self._pool().get_master_address()
