"""System checks: wrong configurations are refused with an id and the setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import redis
from django.conf import settings
from django.core.checks import run_checks
from django.test import override_settings

from mlserve.settings.redis_url import l2_alias
from tests.cache.wire_contract import l2_at
from tests.fixtures.servers import ServerHandle
from tests.fixtures.topologies import PASSWORD, ClusterTopology, SentinelTopology

CACHE = "redis://:secret@cache.example.com:6379/0"


def _ids(*, live: bool = False) -> set[str | None]:
    messages = run_checks(databases=["default"]) if live else run_checks()
    return {message.id for message in messages if (message.id or "").startswith("mlserve.")}


@contextmanager
def _urls(*, cache: str, broker: str) -> Iterator[None]:
    caches = deepcopy(settings.CACHES)
    caches["l2"] = l2_alias(cache, timeout_s=0.05)
    with override_settings(CACHES=caches, REDIS_BROKER_URL=broker):
        yield


@pytest.mark.parametrize(
    ("cache", "broker", "refused"),
    [
        (CACHE, CACHE, True),
        (CACHE, "redis://cache.example.com/5", True),
        ("redis://localhost:6380/0", "redis://127.0.0.1:6380/1", True),
        ("unix:///run/valkey.sock?db=0", "unix:///run/valkey.sock?db=1", True),
        ("redis+sentinel://a.example.com,b.example.com:6380/s", "redis://b.example.com:6380/0", True),
        ("redis+cluster://:secret@a.example.com:6379,cache.example.com:6380", "redis://cache.example.com:6380/0", True),
        ("redis+cluster://a.example.com,b.example.com", "redis://c.example.com/0", False),
        (CACHE, "redis://broker.example.com:6379/0", False),
        (CACHE, "redis://cache.example.com:6380/0", False),
        ("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0", False),
    ],
)
def test_cache_and_broker_on_one_redis_are_refused(cache: str, broker: str, refused: bool) -> None:
    """E001: database numbers separate keys, not memory and not eviction; no servers at all are no finding."""
    with _urls(cache=cache, broker=broker):
        assert ("mlserve.E001" in _ids()) is refused


@pytest.mark.parametrize(
    ("threads", "at_once", "waiting", "found"),
    [
        (26, 4, 6, False),
        (16, 4, 6, False),
        (16, 4, 7, True),
        (16, 16, 0, True),
        (10, 4, 0, False),
        (8, 2, 0, False),
        (8, 1, 1, False),
        (8, 1, 2, True),
        (4, 4, 0, False),
        (4, 5, 0, True),
        (4, 2, 2, True),
        (1, 1, 0, False),
    ],
)
def test_scores_must_leave_a_thread(threads: int, at_once: int, waiting: int, found: bool) -> None:
    """W007: one for each other kind, and one to refuse and to answer health checks. Few may all work."""
    with override_settings(WEB_THREADS=threads, SCORES_AT_ONCE=at_once, SCORES_WAITING=waiting):
        assert ("mlserve.W007" in _ids()) is found


def test_the_message_names_the_setting_and_not_the_password() -> None:
    """The hint says what to set; the URL's password stays out of logs."""
    with _urls(cache=CACHE, broker=CACHE):
        (message,) = [message for message in run_checks() if message.id == "mlserve.E001"]
    assert "REDIS_BROKER_URL" in (message.hint or "")
    assert "secret" not in str(message)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("server", "policy", "finding"),
    [
        ("valkey_broker", "allkeys-lru", "mlserve.E002"),
        ("valkey_broker", "volatile-ttl", "mlserve.E002"),
        ("valkey_cache", "noeviction", "mlserve.W003"),
        ("valkey_cache", "allkeys-lfu", "mlserve.W003"),
    ],
)
def test_eviction_policies_are_asked_of_the_servers(
    request: pytest.FixtureRequest, server: str, policy: str, finding: str
) -> None:
    """E002 and W003 come from CONFIG, and only where the check may talk to servers."""
    handle: ServerHandle = request.getfixturevalue(server)
    client = redis.Redis.from_url(handle.url, decode_responses=True)
    right = str(client.config_get("maxmemory-policy")["maxmemory-policy"])
    client.config_set("maxmemory-policy", policy)
    try:
        assert _ids(live=True) == {finding}
        assert _ids() == set()
    finally:
        client.config_set("maxmemory-policy", right)


@pytest.mark.django_db
def test_a_dead_server_is_no_finding_of_a_check(valkey_broker: ServerHandle) -> None:
    """`migrate` must run while the broker is down; the doctor reports that."""
    valkey_broker.kill()
    assert _ids(live=True) == set()


@pytest.mark.django_db
def test_the_embedded_servers_pass() -> None:
    """What the project starts by itself is configured as it asks of others."""
    assert _ids(live=True) == set()


@pytest.mark.parametrize("alias", ["l1", "l2"])
def test_another_cache_backend_is_refused(alias: str) -> None:
    """The engine is written for these two; with another one it would fail at the first score."""
    assert "mlserve.E004" not in _ids()
    caches = deepcopy(settings.CACHES)
    caches[alias]["BACKEND"] = "django.core.cache.backends.locmem.LocMemCache"
    with override_settings(CACHES=caches):
        assert "mlserve.E004" in _ids()


@pytest.mark.django_db
@pytest.mark.parametrize("topology", ["sentinel_topology", "cluster_topology"])
def test_a_broker_that_is_one_of_the_nodes_is_found_by_asking(request: pytest.FixtureRequest, topology: str) -> None:
    """E001: the settings name Sentinels or seeds; the servers say who stands behind them, replicas as well."""
    behind: SentinelTopology | ClusterTopology = request.getfixturevalue(topology)
    servers = behind.servers if isinstance(behind, SentinelTopology) else behind.nodes
    broker = f"redis://:{PASSWORD}@{servers[-1].address}/0"
    with l2_at(behind.url), override_settings(REDIS_BROKER_URL=broker, CACHE_PARTITIONS=1):
        assert "mlserve.E001" not in _ids()
        assert "mlserve.E001" in _ids(live=True)


@pytest.mark.django_db
def test_every_node_must_evict(cluster_topology: ClusterTopology) -> None:
    """W003 names the one server whose policy is another."""
    node = cluster_topology.nodes[-1]
    node.client.config_set("maxmemory-policy", "noeviction")
    try:
        with l2_at(cluster_topology.url), override_settings(CACHE_PARTITIONS=16):
            messages = run_checks(databases=["default"])
    finally:
        node.client.config_set("maxmemory-policy", "volatile-lfu")
    (found,) = [message for message in messages if message.id == "mlserve.W003"]
    assert node.address in found.msg


@pytest.mark.parametrize(
    ("url", "partitions", "warned"),
    [
        (CACHE, 1, False),
        (CACHE, 16, True),
        ("redis+sentinel://a.example.com/s", 16, True),
        ("redis+cluster://a.example.com", 16, False),
        ("redis+cluster://a.example.com", 1, True),
    ],
)
def test_partitions_are_for_clusters(url: str, partitions: int, warned: bool) -> None:
    """W005: they spread keys over nodes, and do nothing else."""
    with _urls(cache=url, broker="redis://broker.example.com/0"), override_settings(CACHE_PARTITIONS=partitions):
        assert ("mlserve.W005" in _ids()) is warned
