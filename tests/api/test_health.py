"""Health with servers that are really stopped and frozen."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
from django.test import Client

from mlserve import health
from predictions.registry.active import NoActiveModel
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

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


class _Hanging:
    """A check that hangs until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.let_go = threading.Event()

    def __call__(self) -> str:
        self.begun += 1
        self.let_go.wait(30)
        return "answers"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hanging]:
    """The only check that there is."""
    check = _Hanging()
    monkeypatch.setattr(health, "_registry", {"one": health._Registered(check, True)})
    yield check
    check.let_go.set()


def test_a_check_that_hangs_has_failed_and_is_not_begun_again(
    hanging: _Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a thread more, however often somebody asks; when it ends, the next round begins it anew."""
    monkeypatch.setattr(health, "ROUND_S", 0.05)
    monkeypatch.setattr(health, "SHARED_FOR_S", 0.0)
    for _ in range(5):
        result = health.readiness()
        assert (result.status, result.checks["one"].status) == ("unavailable", "failed")
        assert "does not answer within" in result.checks["one"].detail
    assert hanging.begun == 1
    hanging.let_go.set()
    until(lambda: health.readiness().status == "ready")


def test_all_who_ask_share_one_round(hanging: _Hanging) -> None:
    """One waits for it, the others do not; within a second after it nothing is asked again."""
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(health.readiness) for _ in range(10)]
        until(lambda: sum(each.done() for each in asked) == 9)
        hanging.let_go.set()
        results = [each.result().status for each in asked]
    assert sorted(results) == ["ready"] + 9 * ["unavailable"]  # nothing was known
    assert [health.readiness().status for _ in range(5)] == 5 * ["ready"]
    assert hanging.begun == 1


def test_while_a_round_hangs_the_last_result_serves(hanging: _Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """To all but one, at once; a result that is too old says nothing."""
    hanging.let_go.set()
    assert health.readiness().status == "ready"
    hanging.let_go.clear()
    monkeypatch.setattr(health, "SHARED_FOR_S", 0.0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(health.readiness)
        until(lambda: hanging.begun == 2)
        assert health.readiness().status == "ready"
        monkeypatch.setattr(health, "GOOD_FOR_S", 0.0)
        assert health.readiness() == health.Readiness(status="unavailable", checks={})
        monkeypatch.undo()
        hanging.let_go.set()
        assert waits.result().status == "ready"


def test_checks_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that hang take no longer than one."""
    meet = threading.Barrier(3)

    def meets() -> str:
        meet.wait(10)
        return "met the others"

    registry = {name: health._Registered(meets, True) for name in ("a", "b", "c")}
    monkeypatch.setattr(health, "_registry", registry)
    assert health.readiness().status == "ready"
