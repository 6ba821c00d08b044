"""Behind PgBouncer: the service, its relay and what the doctor says."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlserve.settings.env import child_environment
from predictions.models import Decision
from tests.fixtures.pooler import pooler
from tests.fixtures.population import World, database_url
from tests.fixtures.web_process import WebProcess, web_process

pytestmark = pytest.mark.pooler
ROOT = Path(__file__).resolve().parent.parent.parent
TRANSACTION = {"MLSERVE_DB_TRANSACTION_POOLER": "true"}
# Not those of the tests: they pass `options` at the start of a session, which PgBouncer refuses.
SETTINGS = {"DJANGO_SETTINGS_MODULE": "mlserve.settings.local", "MLSERVE_CACHE_MAC_KEY": "off"}


@pytest.fixture(params=[pytest.param("session", marks=pytest.mark.torture), "transaction"])
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pooled(world: World, mode: str) -> Iterator[dict[str, str]]:
    """The environment of a process whose address is the pooler's."""
    with pooler(database_url(), mode=mode) as url:
        environment = {"DATABASE_URL": url}
        yield environment | (TRANSACTION | {"DATABASE_DIRECT_URL": database_url()} if mode == "transaction" else {})


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`manage.py`, in a process of its own."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=child_environment(**SETTINGS, **environment),
        capture_output=True,
        text=True,
        timeout=60,
    )


def findings(**environment: str) -> dict[str, dict[str, Any]]:
    """What the doctor says, by subject."""
    report = json.loads(command("doctor", "--json", **environment).stdout)
    return {finding["subject"]: finding for finding in report["findings"]}


def test_scores_are_given_and_stored(pooled: dict[str, str], world: World) -> None:
    """By more threads than the pooler has servers, so that each session meets the servers of others."""
    with web_process(**{**pooled, **SETTINGS, "GRANIAN_BLOCKING_THREADS": "16", "MLSERVE_SCORES_AT_ONCE": "6"}) as web:
        answers: list[dict[str, Any]] = []

        def score(web: WebProcess, customer: int) -> None:
            for _ in range(5):
                answers.append(web.post(world.request(customer_id=f"C{customer}", merchant_id=f"M{customer}")))

        threads = [threading.Thread(target=score, args=(web, customer)) for customer in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 30
        ids = [answer["transaction_id"] for answer in answers]
        assert not [answer for answer in answers if "decision_spooled" in answer["degraded_reasons"]]
        assert Decision.objects.filter(pk__in=ids).count() == 30
        label = {"labels": [{"transaction_id": ids[0], "is_fraud": True}]}
        assert web.send("/v1/labels", label)["results"][0]["status"] == 200
        assert web.ask("GET", "/v1/policies").status == 200
        assert web.ask("GET", "/admin/").status == 302


def test_a_relay_ticks(pooled: dict[str, str]) -> None:
    """Once, and says what it has done."""
    done = command("relay", "--once", "--json", **pooled)
    assert done.returncode == 0, done.stderr


def test_the_doctor_names_the_pooler(pooled: dict[str, str], mode: str) -> None:
    """And is content, where it was told of it."""
    found = findings(**pooled)["pooler"]
    assert (found["level"], f"in {mode} mode" in found["detail"]) == ("ok", True), found


@pytest.mark.parametrize(
    ("environment", "fix"),
    [({}, "MLSERVE_DB_TRANSACTION_POOLER"), (TRANSACTION, "DATABASE_DIRECT_URL")],
)
def test_the_doctor_says_what_a_transaction_pooler_needs(world: World, environment: dict[str, str], fix: str) -> None:
    """The setting, and an address for the relay."""
    with pooler(database_url(), mode="transaction") as url:
        found = findings(DATABASE_URL=url, **environment)["pooler"]
    assert found["level"] == "fail"
    assert fix in found["fix"]


def test_a_relay_without_a_session_of_its_own_says_what_it_needs(world: World) -> None:
    """It does not wait for ever."""
    with pooler(database_url(), mode="transaction") as url:
        done = command("relay", "--once", DATABASE_URL=url, **TRANSACTION)
    assert done.returncode == 1
    assert "DATABASE_DIRECT_URL" in done.stderr
