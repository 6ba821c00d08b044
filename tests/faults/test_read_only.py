"""PostgreSQL answers and takes no writes: a standby that was promoted late, a role or server set to read only."""

import json
from collections.abc import Iterator

import pytest
from django.core.management import call_command

from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from mlserve.platform.diagnosis import Level, examine
from predictions import spool
from predictions.delivery import deliver_spooled
from predictions.models import Decision
from tests.fixtures.population import World
from tests.fixtures.waiting import until
from tests.postgres.server_defaults import server_default

SPOOLED = "decision_spooled"


@pytest.fixture
def read_only(world: World) -> Iterator[World]:
    """Set while the process serves; its sessions obey at once."""
    assert world.score().body["degraded_reasons"] == []
    with server_default("default_transaction_read_only", "on"):
        yield world


def test_reads_go_on_and_decisions_wait(world: World) -> None:
    """Who is in no cache is read from PostgreSQL; the only flag is that of the decision; all arrive afterwards."""
    world.score()
    with server_default("default_transaction_read_only", "on"):
        answers = [world.score(customer_id=f"C{number}", merchant_id=f"M{number}") for number in range(1, 6)]
        for answer in answers:
            assert answer.status == 200
            assert answer.body["degraded_reasons"] == [SPOOLED]
        assert "l3" in set(answers[-1].tiers.values())
        assert engine().l3_breaker.opened_count == 0
        assert engine().l3_write_breaker.state is not State.CLOSED
        assert deliver_spooled() == 0
    until(lambda: engine().l3_write_breaker.state is State.CLOSED)
    until(lambda: deliver_spooled() == 0 and not spool.pending_files())
    assert Decision.objects.filter(pk__in=[answer.body["transaction_id"] for answer in answers]).count() == 5


def test_a_repetition_gets_the_stored_answer(world: World) -> None:
    """It was decided before PostgreSQL took no more writes; other contents under that id are a conflict, as ever."""
    body = world.request()
    before = world.client.post("/v1/scores", body, content_type="application/json")
    with server_default("default_transaction_read_only", "on"):
        for _ in range(3):  # before the breaker has opened, and after
            again = world.client.post("/v1/scores", body, content_type="application/json")
            assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
            assert again.json() == before.json()
        other = world.client.post("/v1/scores", {**body, "amount": 1.0}, content_type="application/json")
        assert (other.status_code, other.json()["code"]) == (422, "transaction_conflict")
        assert world.score().body["degraded_reasons"] == [SPOOLED]
        assert len(spool.pending_files()) == 1
    until(lambda: engine().l3_write_breaker.state is State.CLOSED)
    until(lambda: deliver_spooled() == 0 and not spool.pending_files())


def test_labels_are_refused_for_later(read_only: World) -> None:
    """503 with Retry-After: nothing was stored, and the same again may go well."""
    body = json.dumps({"labels": [{"transaction_id": "ledger-1", "is_fraud": True}]})
    response = read_only.client.post("/v1/labels", body, content_type="application/json")
    assert response.status_code == 503, response.content
    assert response.json()["code"] == "source_read_only"
    assert int(response.headers["Retry-After"]) > 0


def test_what_reads_is_answered(read_only: World) -> None:
    """Lists, a stored decision, an entity."""
    for path in ("/v1/policies", "/v1/models", "/v1/features/customer/C1"):
        assert read_only.client.get(path).status_code == 200, path


def test_readiness_and_the_doctor_say_so(read_only: World) -> None:
    """Ready, since it scores; degraded, and why."""
    response = read_only.client.get("/healthz/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    check = response.json()["checks"]["postgres_writes"]
    assert check["status"] == "failed"
    assert "no writes" in check["detail"]
    assert response.json()["checks"]["postgres"]["status"] == "ok"
    (finding,) = [finding for finding in examine() if finding.subject == "PostgreSQL writes"]
    assert finding.level is Level.FAIL
    assert "read only" in finding.detail and "default_transaction_read_only" in finding.fix
    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--json")
    assert ended.value.code == 1
