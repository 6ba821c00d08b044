"""`manage.py doctor` on healthy and on broken servers."""

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from mlserve.platform import diagnosis
from mlserve.platform.diagnosis import Finding, Level
from tests.fixtures.servers import ServerHandle


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
