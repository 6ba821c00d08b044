"""Django system checks: a configuration that would lose data or warmth quietly is refused loudly.

| id | finding | when |
| --- | --- | --- |
| mlserve.E001 | cache and broker are one Redis | every check; with `--database` also among the servers that are found |
| mlserve.E002 | the broker evicts | checks with `--database`, and before `migrate` |
| mlserve.W003 | the cache does not evict, or evicts keys without expiry | the same |
| mlserve.E004 | L1 or L2 is not served by the backend that the engine is written for | every check |
| mlserve.W005 | L2's keys fall into several parts on one server, or into one part on a cluster | every check |
| mlserve.W007 | requests that wait can take every thread of a web process | every check |
"""

from collections.abc import Sequence
from typing import Any

import redis
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from mlserve.platform import l2_nodes, redis_facts
from mlserve.settings import threads
from mlserve.settings.redis_url import Mode

# The port of the URLs that `settings/base.py` puts where none is configured: nothing listens there.
_NOWHERE = ":1"


@register("mlserve")
def check_separate_servers(**_: Any) -> list[CheckMessage]:
    """E001: a full cache would evict tasks, and a flush of the cache would drop the queue."""
    return _shared(l2_nodes.configured(settings.CACHES["l2"]))


def _shared(cache_addresses: Sequence[str]) -> list[CheckMessage]:
    broker = _broker_url()
    if broker is None:
        return []
    return [
        Error(
            f"The cache and Celery's broker are the same Redis, {address}.",
            hint="Set REDIS_CACHE_URL and REDIS_BROKER_URL to two servers; another database number is not enough.",
            id="mlserve.E001",
        )
        for address in cache_addresses
        if redis_facts.same_address(address, redis_facts.address(broker)) and not address.endswith(_NOWHERE)
    ]


@register("mlserve")
def check_partitions(**_: Any) -> list[CheckMessage]:
    """W005: parts are for spreading over nodes; each has a watermark and a command of its own."""
    is_cluster = l2_nodes.mode_of(settings.CACHES["l2"]) is Mode.CLUSTER
    if is_cluster == (settings.CACHE_PARTITIONS > 1):
        return []
    problem = "all of L2 lies on one node of the cluster" if is_cluster else "on one server that only costs"
    return [
        Warning(
            f"The number of partitions is {settings.CACHE_PARTITIONS}: {problem}.",
            hint="Leave MLSERVE_CACHE_PARTITIONS unset: it is 16 on a cluster and 1 elsewhere.",
            id="mlserve.W005",
        )
    ]


@register("mlserve")
def check_threads_left(**_: Any) -> list[CheckMessage]:
    """W007: whoever waits for a slot keeps a thread, and it takes another one to refuse or to answer a health check.

    Knows the threads by granian's variable alone. So few that they cannot be divided are a choice, unless scores may
    wait for each other on all of them.
    """
    count, at_once, waiting = settings.WEB_THREADS, settings.SCORES_AT_ONCE, settings.SCORES_WAITING
    taken = threads.divide(threads=count, at_once=at_once, waiting=waiting).threads
    few = count <= threads.FEW and waiting == 0 and at_once <= count
    if taken < count or few:
        return []
    return [
        Warning(
            f"Scores have {at_once} slots and wait for them in {waiting}; with pages, other calls, metrics and batches "
            f"that wait, {taken} threads can be taken, and a web process has {count}. None is left that refuses "
            "more of them, or answers a health check.",
            hint="Leave MLSERVE_SCORES_AT_ONCE and MLSERVE_SCORES_WAITING unset, or raise GRANIAN_BLOCKING_THREADS, "
            "in the environment of the web process and of this check.",
            id="mlserve.W007",
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
    """E001, E002 and W003, by asking the servers; one that does not answer is the doctor's business."""
    if not databases:
        return []
    return [*_check_broker_keeps(), *_check_cache_nodes()]


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


def _check_cache_nodes() -> list[CheckMessage]:
    alias = settings.CACHES["l2"]
    if all(address.endswith(_NOWHERE) for address in l2_nodes.configured(alias)):
        return []
    nodes = [node for node in l2_nodes.survey(alias) if node.role is not l2_nodes.Role.SENTINEL]
    known = set(l2_nodes.configured(alias))  # those are found without asking
    shared = _shared([node.address for node in nodes if node.address not in known])
    return [*shared, *_check_cache_evicts(nodes)]


def _check_cache_evicts(nodes: Sequence[l2_nodes.L2Node]) -> list[CheckMessage]:
    return [
        Warning(
            f"The maxmemory-policy of the cache, {node.address}, is {node.facts.maxmemory_policy}: when its memory is "
            "full, it refuses writes or evicts keys that have no expiry, such as leases and watermarks.",
            hint="Set maxmemory-policy volatile-lfu on every server behind REDIS_CACHE_URL.",
            id="mlserve.W003",
        )
        for node in nodes
        if node.facts is not None and not node.facts.maxmemory_policy.startswith("volatile-")
    ]


def _facts(url: str | None) -> redis_facts.RedisFacts | None:
    if url is None:
        return None
    try:
        return redis_facts.ask(url)
    except redis.RedisError:
        return None


def _broker_url() -> str | None:
    url: str = settings.REDIS_BROKER_URL
    return None if redis_facts.address(url).endswith(_NOWHERE) else url
