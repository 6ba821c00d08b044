"""`manage.py doctor` on healthy and on broken servers."""

import json
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import redis
from django.core.management import call_command
from django.test import override_settings

from mlserve.platform import diagnosis, l2_nodes
from mlserve.platform.diagnosis import Finding, Level
from mlserve.settings.redis_url import l2_alias
from tests.cache.wire_contract import l2_at
from tests.fixtures.servers import ServerHandle
from tests.fixtures.topologies import ClusterTopology, SentinelTopology


def _doctor() -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and findings by subject."""
    out, code = StringIO(), 0
    try:
        call_command("doctor", "--json", stdout=out)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    document = json.loads(out.getvalue())
    assert document["healthy"] is (code == 0)
    return code, {finding["subject"]: finding for finding in document["findings"]}


@pytest.fixture
def only_engines() -> Iterator[None]:
    """Without what apps report: it depends on their data."""
    known = dict(diagnosis._registry)
    subjects = {"Python", "PostgreSQL", "migrations", "cache", "broker", "Celery worker", "Celery beat"}
    for subject in known.keys() - subjects:
        del diagnosis._registry[subject]
    yield
    diagnosis._registry.clear()
    diagnosis._registry.update(known)


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_healthy_servers_pass() -> None:
    """Versions, addresses, policies and migrations are fine; a missing worker and beat are warnings with a fix."""
    code, findings = _doctor()

    assert code == 0
    fine = ("PostgreSQL", "migrations", "cache", "cache policy", "broker", "broker policy", "cache and broker")
    assert {subject: findings[subject]["level"] for subject in fine} == dict.fromkeys(fine, "ok")
    assert findings["PostgreSQL"]["detail"].startswith("18.")
    assert findings["cache"]["detail"].startswith("Valkey 9.")
    assert findings["Celery worker"]["level"] == findings["Celery beat"]["level"] == "warn"
    assert "celery -A mlserve.celery worker" in findings["Celery worker"]["fix"]


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_a_frozen_cache_fails_with_the_variable_to_correct(valkey_cache: ServerHandle) -> None:
    """One server that hangs is named, and the rest is examined nevertheless."""
    valkey_cache.freeze()

    code, findings = _doctor()

    assert code == 1
    assert findings["cache"]["level"] == "fail"
    assert "REDIS_CACHE_URL" in findings["cache"]["fix"]
    assert findings["broker"]["level"] == "ok"


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_without_a_broker_the_worker_is_not_asked(valkey_broker: ServerHandle) -> None:
    """A dead broker is one failure, not a hanging doctor."""
    valkey_broker.kill()

    code, findings = _doctor()

    assert code == 1
    assert findings["broker"]["level"] == "fail"
    assert findings["Celery worker"]["detail"] == "not examined: the broker does not answer"


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_an_evicting_broker_fails(valkey_broker: ServerHandle) -> None:
    """A broker that evicts loses tasks without a word."""
    import redis

    client = redis.Redis.from_url(valkey_broker.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code, findings = _doctor()
    finally:
        client.config_set("maxmemory-policy", "noeviction")

    assert code == 1
    assert findings["broker policy"]["level"] == "fail"
    assert "noeviction" in findings["broker policy"]["fix"]


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_apps_add_their_own_findings() -> None:
    """A diagnosis that an app registers is reported; one that raises is a failure and hides no other."""

    def broken() -> list[Finding]:
        raise ValueError("no idea")

    diagnosis.register("broken", broken)
    diagnosis.register("model", lambda: [Finding(subject="model", level=Level.OK, detail="fraud 3")])

    code, findings = _doctor()

    assert code == 1
    assert findings["model"]["detail"] == "fraud 3"
    assert findings["broken"]["detail"] == "could not be examined: ValueError: no idea"


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_people_read_one_line_per_finding_and_its_fix() -> None:
    """Level, subject, detail; under it what to do."""
    out = StringIO()
    call_command("doctor", stdout=out, no_color=True)
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["ok", "Python", lines[0].split()[-1]]
    assert any(line.strip().startswith("fix: celery -A mlserve.celery worker") for line in lines)


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_the_servers_behind_sentinels_are_listed(sentinel_topology: SentinelTopology) -> None:
    """Each with its role and version; a Sentinel that is away is a warning, a primary that is away a failure."""
    sentinel_topology.set_patience(30_000)
    with l2_at(sentinel_topology.url):
        _, findings = _doctor()
        primary = sentinel_topology.primary
        assert findings["cache"]["level"] == "ok"
        assert primary.address in findings["cache"]["detail"]
        roles = [subject.split()[1] for subject in findings if subject.startswith("cache ") and ":" in subject]
        assert sorted(roles) == ["primary", "replica", *["sentinel"] * 3]
        assert findings[f"cache primary {primary.address}"]["detail"].startswith("Valkey 9.")
        away = sentinel_topology.sentinels[1]
        away.kill()
        _, findings = _doctor()
        assert findings[f"cache sentinel {away.address}"]["level"] == "warn"
        assert findings["cache"]["level"] == "ok"
        primary.kill()
        code, findings = _doctor()
        assert code == 1
        assert findings["cache"]["level"] == "fail"


@pytest.mark.django_db
@pytest.mark.usefixtures("only_engines")
def test_the_nodes_of_a_cluster_are_listed(cluster_topology: ClusterTopology) -> None:
    """Also those that are no seeds; a replica that is away is a warning, a primary that is away a failure."""
    cluster_topology.set_patience(30_000)
    with l2_at(cluster_topology.url), override_settings(CACHE_PARTITIONS=16):
        _, findings = _doctor()
        roles = [subject.split()[1] for subject in findings if subject.startswith("cache ") and ":" in subject]
        assert sorted(roles) == ["primary"] * 3 + ["replica"] * 3
        assert findings["cache"]["level"] == findings["cache policy"]["level"] == "ok"
        primary = cluster_topology.primaries()[0]
        replica = cluster_topology.replica_of(primary)
        replica.kill()
        _, findings = _doctor()
        assert findings[f"cache replica {replica.address}"]["level"] == "warn"
        assert findings["cache"]["level"] == "ok"
        primary.kill()
        code, findings = _doctor()
        assert code == 1
        assert primary.address in findings["cache"]["detail"]


@pytest.mark.parametrize("topology", ["sentinel_topology", "cluster_topology"])
def test_readiness_asks_the_topology(request: pytest.FixtureRequest, topology: str) -> None:
    """One node of those in the settings is enough; none is a failure, within the time limit."""
    behind: SentinelTopology | ClusterTopology = request.getfixturevalue(topology)
    listed = behind.sentinels if isinstance(behind, SentinelTopology) else behind.nodes
    alias = l2_alias(behind.url, timeout_s=0.05)
    behind.set_patience(30_000)
    listed[0].freeze()
    l2_nodes.require_answer(alias, timeout_s=1.0)
    for node in listed:
        node.freeze()
    began = time.monotonic()
    with pytest.raises(redis.RedisError):
        l2_nodes.require_answer(alias, timeout_s=1.0)
    assert time.monotonic() - began < 1.5
