"""Health with servers that are really stopped and frozen."""

from time import monotonic

import pytest
from django.test import Client

from mlserve import health
from predictions.registry.active import NoActiveModel
from tests.fixtures.servers import ServerHandle

pytestmark = pytest.mark.django_db(transaction=True)


def test_ready_names_every_check(client: Client, with_a_model: None) -> None:
    """With its time, and whether the process is unready without it."""
    response = client.get("/healthz/ready")
    body = response.json()
    assert (response.status_code, body["status"]) == (200, "ready")
    assert {name: check["required"] for name, check in body["checks"].items()} == {
        "postgres": False,
        "postgres_writes": False,
        "cache": False,
        "broker": False,
        "model": True,
        "activation": False,
        "policies": False,
        "spool": False,
    }
    assert all(check["status"] == "ok" and check["ms"] >= 0 for check in body["checks"].values())


def test_without_a_model_it_is_not_ready(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what to do; the process lives all the same."""

    def nothing_active() -> str:
        raise NoActiveModel

    monkeypatch.setitem(health._registry, "model", health._Registered(nothing_active, True))
    response = client.get("/healthz/ready")
    assert (response.status_code, response.json()["status"]) == (503, "unavailable")
    assert response.headers["Retry-After"] == "2"
    assert "manage.py train" in response.json()["checks"]["model"]["detail"]
    assert client.get("/healthz/live").json() == {"status": "ok"}


@pytest.mark.parametrize("harm", ["kill", "freeze"])
def test_without_valkey_it_is_ready_and_degraded(
    client: Client, with_a_model: None, valkey_cache: ServerHandle, harm: str
) -> None:
    """Dead or frozen, within the time limit of one check."""
    getattr(valkey_cache, harm)()
    started = monotonic()
    response = client.get("/healthz/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.json()["checks"]["cache"]["status"] == "failed"
    assert monotonic() - started < 4 * health.TIMEOUT_S


@pytest.mark.parametrize("harm", ["kill", "freeze"])
def test_without_postgres_it_is_ready_and_degraded(
    client: Client, with_a_model: None, postgres: ServerHandle, harm: str
) -> None:
    """Dead or frozen, in bounded time, without naming hosts or users: it scores from what is cached."""
    getattr(postgres, harm)()
    started = monotonic()
    response = client.get("/healthz/ready")
    elapsed_s = monotonic() - started
    postgres.mend()
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.json()["checks"]["postgres"]["detail"].startswith("does not answer")
    assert "127.0.0.1" not in response.content.decode()
    assert elapsed_s < 6 * health.TIMEOUT_S
