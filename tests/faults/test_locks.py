"""Somebody holds the row of one customer, as an operator's open transaction does: nobody else notices."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from django.db import connection

from features.activity import lock_customers
from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from predictions.delivery import deliver_spooled
from predictions.journal import journal
from predictions.locked import HOLD_S
from predictions.models import Decision
from tests.features.sessions import conninfo
from tests.fixtures.population import Answer, World
from tests.fixtures.waiting import until
from tests.postgres.server_defaults import drop_sessions, server_default

SPOOLED = "decision_spooled"
OF_CUSTOMER = """SELECT FROM features_featurerow WHERE "group" = 'customer_activity' AND entity_id = %s FOR UPDATE"""


@contextmanager
def held(statement: str, *parameters: str) -> Iterator[None]:
    """By a session that does nothing else."""
    with closing(psycopg.connect(conninfo())) as other:
        other.execute(statement, parameters)
        yield


def score_at_once(world: World, customers: Sequence[str]) -> dict[str, Answer]:
    """One transaction of each, all at the same moment; each on a thread of its own, as in the web process."""
    answers: dict[str, Answer] = {}
    barrier = threading.Barrier(len(customers))

    def score(customer_id: str) -> None:
        barrier.wait()
        answers[customer_id] = world.score(customer_id=customer_id)
        assert answers[customer_id].status == 200, answers[customer_id].body
        connection.close()

    threads = [threading.Thread(target=score, args=(customer_id,)) for customer_id in customers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _flags(answer: dict[str, Any]) -> set[str]:
    """What PostgreSQL has to do with; sixteen threads may find that L2 takes too long."""
    return set(answer["degraded_reasons"]) - {"cache_unavailable"}


def _waiting_sessions() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(cursor.fetchone()[0])


@pytest.fixture
def warm(world: World) -> World:
    """Sixteen customers are in L2, with their activity."""
    for number in range(16):
        assert world.score(customer_id=f"C{number}").body["degraded_reasons"] == []
    world.settle()
    return world


def test_one_customers_lock_delays_that_customer_alone(warm: World) -> None:
    """The others are stored; nobody's reads are flagged; the one is spooled, and delivered when the lock is gone."""
    with held(OF_CUSTOMER, "C3"):
        answers = score_at_once(warm, [f"C{number}" for number in range(16)])
        flags = {customer: _flags(answer.body) for customer, answer in answers.items()}
        assert flags == {f"C{number}": {SPOOLED} if number == 3 else set() for number in range(16)}
        ids = {customer: answer.body["transaction_id"] for customer, answer in answers.items()}
        assert Decision.objects.filter(pk__in=ids.values()).count() == 15
        assert engine().l3_breaker.opened_count == engine().l3_write_breaker.opened_count == 0

        again = score_at_once(warm, ["C3", "C4"])  # what is known to be locked does not wait any more
        assert _flags(again["C3"].body) == {SPOOLED}
        assert _flags(again["C4"].body) == set()
        until(lambda: _waiting_sessions() == 0)  # and no session piles up behind the lock
    until(lambda: deliver_spooled() >= 0 and Decision.objects.filter(pk=ids["C3"]).exists())
    assert warm.stored(ids["C3"]) == answers["C3"].body
    until(lambda: not _flags(warm.score(customer_id="C3").body))


def test_a_lock_that_ends_soon_is_waited_for(warm: World) -> None:
    """The decision is in PostgreSQL, not in the spool."""
    with held(OF_CUSTOMER, "C3"):
        answers: dict[str, Answer] = {}
        scoring = threading.Thread(target=lambda: answers.update(score_at_once(warm, ["C3"])))
        scoring.start()
        until(lambda: _waiting_sessions() == 1)
    scoring.join()
    assert _flags(answers["C3"].body) == set()


def test_a_customer_that_somebody_else_records_for_is_locked_too(warm: World) -> None:
    """By the lock that is taken before the ledger is read, which no row shows."""
    with closing(psycopg.connect(conninfo())) as other:
        lock_customers(other.cursor(), ["C5"])
        answers = score_at_once(warm, ["C5", "C6"])
    assert _flags(answers["C5"].body) == {SPOOLED}
    assert _flags(answers["C6"].body) == set()


def test_an_id_that_another_session_is_about_to_insert_delays_its_customer_alone(warm: World) -> None:
    """No row and no customer is locked: the ledger's key is."""
    request = warm.request(customer_id="C7")
    insert = (
        "INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount, currency) "
        "VALUES (%s, %s, 'C7', 'M1', 20, 'EUR')"
    )
    answers: dict[str, Answer] = {}

    def score() -> None:
        answers["C7"] = warm.post(request)
        connection.close()

    with held(insert, request["transaction_id"], request["occurred_at"]):
        scoring = threading.Thread(target=score)
        scoring.start()
        until(lambda: _waiting_sessions() == 1)
        others = score_at_once(warm, ["C8", "C9"])
        scoring.join()
    assert [_flags(others[customer].body) for customer in ("C8", "C9")] == [set(), set()]
    assert _flags(answers["C7"].body) == {SPOOLED}


@pytest.mark.parametrize("table", ["predictions_decision", "features_transaction"])
def test_a_table_that_is_locked_against_writes_spools_everybody(warm: World, table: str) -> None:
    """In bounded time, whoever has come; reads go on, and nobody is refused."""
    with held(f"LOCK TABLE {table} IN SHARE MODE"):
        answers = score_at_once(warm, [f"C{number}" for number in range(8)])
        assert {frozenset(_flags(answer.body)) for answer in answers.values()} == {frozenset({SPOOLED})}
        assert max(answer.seconds for answer in answers.values()) < 5
    journal().stop()
    until(lambda: deliver_spooled() >= 0 and warm.stored(answers["C1"].body["transaction_id"]) is not None)


def test_a_batch_waits_for_its_locked_customer_and_stores_the_others(warm: World) -> None:
    """One answer, with the flag on the item that it is about."""
    requests = [warm.request(customer_id=f"C{number}") for number in range(5)]
    with held(OF_CUSTOMER, "C2"):
        response = warm.client.post(
            "/v1/scores/batch", json.dumps({"transactions": requests}), content_type="application/json"
        )
    results = response.json()["results"]
    assert [_flags(result["answer"]) for result in results] == [set(), set(), {SPOOLED}, set(), set()]


def test_whoever_is_held_back_when_the_process_ends_is_spooled(warm: World) -> None:
    """What the process was asked for is answered before it ends."""
    with held(OF_CUSTOMER, "C3"):
        answers: dict[str, Answer] = {}
        scoring = threading.Thread(target=lambda: answers.update(score_at_once(warm, ["C3"])))
        scoring.start()
        until(lambda: _waiting_sessions() == 1)
        journal().stop()
        scoring.join(HOLD_S + 10)
    assert _flags(answers["C3"].body) == {SPOOLED}


def test_the_roles_isolation_is_not_the_journals(warm: World) -> None:
    """At REPEATABLE READ two decisions on one customer at a time would fail to be serialised, and be spooled."""
    engine()
    journal().stop()
    drop_sessions()
    with server_default("default_transaction_isolation", "repeatable read"):
        answers = [
            answer for _ in range(3) for answer in score_at_once(warm, [f"C{number}" for number in range(8)]).values()
        ]
    assert not any(_flags(answer.body) for answer in answers)
    assert engine().l3_breaker.state is State.CLOSED
