"""Django system checks: a configuration that would lose data or warmth quietly is refused loudly.

| id | finding | when |
| --- | --- | --- |
| mlserve.E001 | cache and broker are one Redis | every check |
| mlserve.E002 | the broker evicts | checks with `--database`, and before `migrate` |
| mlserve.W003 | the cache does not evict, or evicts keys without expiry | the same |
| mlserve.E004 | L1 or L2 is not served by the backend that the engine is written for | every check |
"""

from collections.abc import Sequence
from typing import Any

import redis
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from mlserve.platform import redis_facts

# The port of the URLs that `settings/base.py` puts where none is configured: nothing listens there.
_NOWHERE = ":1"


@register("mlserve")
def check_separate_servers(**_: Any) -> list[CheckMessage]:
    """E001: a full cache would evict tasks, and a flush of the cache would drop the queue."""
    cache, broker = _cache_url(), _broker_url()
    if cache is None or broker is None or not redis_facts.same_server(cache, broker):
        return []
    return [
        Error(
            f"The cache and Celery's broker are the same Redis, {redis_facts.address(cache)}.",
            hint="Set REDIS_CACHE_URL and REDIS_BROKER_URL to two servers; another database number is not enough.",
            id="mlserve.E001",
        )
    ]


@register("mlserve")
def check_cache_backends(**_: Any) -> list[CheckMessage]:
    """E004: the engine keeps decoded entries by reference in L1 and speaks hash commands to L2."""
    backends = {"l1": "mlserve.cache.tiers.l1_locmem.BoundedLocMemCache", "l2": "django_redis.cache.RedisCache"}
    return [
        Error(
            f"CACHES[{alias!r}] has the backend {settings.CACHES.get(alias, {}).get('BACKEND')!r}.",
            hint=f"Set CACHES[{alias!r}]['BACKEND'] to {backend!r}.",
            id="mlserve.E004",
        )
        for alias, backend in backends.items()
        if settings.CACHES.get(alias, {}).get("BACKEND") != backend
    ]


@register(Tags.database)
def check_eviction(*, databases: Sequence[str] | None, **_: Any) -> list[CheckMessage]:
    """E002 and W003, by asking the servers; one that does not answer is the doctor's business, not this check's."""
    if not databases:
        return []
    return [*_check_broker_keeps(), *_check_cache_evicts()]


def _check_broker_keeps() -> list[CheckMessage]:
    facts = _facts(_broker_url())
    if facts is None or not facts.evicts:
        return []
    return [
        Error(
            f"Celery's broker evicts keys (maxmemory-policy {facts.maxmemory_policy}): tasks can vanish.",
            hint="Set maxmemory-policy noeviction on the server that REDIS_BROKER_URL names.",
            id="mlserve.E002",
        )
    ]


def _check_cache_evicts() -> list[CheckMessage]:
    facts = _facts(_cache_url())
    if facts is None or facts.maxmemory_policy.startswith("volatile-"):
        return []
    return [
        Warning(
            f"The cache's maxmemory-policy is {facts.maxmemory_policy}: when its memory is full, it refuses writes or "
            "evicts keys that have no expiry, such as leases and watermarks.",
            hint="Set maxmemory-policy volatile-lfu on the server that REDIS_CACHE_URL names.",
            id="mlserve.W003",
        )
    ]


def _facts(url: str | None) -> redis_facts.RedisFacts | None:
    if url is None:
        return None
    try:
        return redis_facts.ask(url)
    except redis.RedisError:
        return None


def _cache_url() -> str | None:
    return _configured(settings.CACHES["l2"]["LOCATION"])


def _broker_url() -> str | None:
    return _configured(settings.REDIS_BROKER_URL)


def _configured(url: str | Sequence[str]) -> str | None:
    first = url if isinstance(url, str) else url[0]
    return None if redis_facts.address(first).endswith(_NOWHERE) else first
