"""What a client has seen, it is never shown less of: its token goes from answer to request, between processes too."""

import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
import redis

from features.definitions import CUSTOMER_ACTIVITY, GROUPS
from features.models import FeatureRow
from mlserve.api.data_version import HEADER, read_header, token_of
from mlserve.cache.keys import PREDICTION, Key, names_of
from mlserve.cache.wiring import engine
from predictions import spool
from predictions.models import Decision
from tests.fixtures.population import API_KEY, World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.web_process import WebProcess, web_process

DRY = "include=features&dry_run=true"


@pytest.fixture
def remembering(world: World) -> World:
    """As an operator may choose: every process keeps the customers' activity in its own memory."""
    world.edit_policy(CUSTOMER_ACTIVITY.name, use_l1=True)
    return world


@pytest.fixture
def other(remembering: World) -> Iterator[WebProcess]:
    """Another process of the same service."""
    with web_process() as web:
        yield web


def _activity(customer: str) -> Key:
    return Key("customer", customer, CUSTOMER_ACTIVITY.name)


def _post(world: World, request: dict[str, Any], token: str | None = None, query: str = DRY) -> Any:
    headers = {} if token is None else {HEADER: token}
    return world.client.post(
        f"/v1/scores?{query}", json.dumps(request), content_type="application/json", headers=headers
    )


def _count(body: Any) -> int:
    """Of the customer's transactions that the score knew, its own included."""
    return int(next(one["value"] for one in body["features"] if one["name"] == "customer_count_1d"))


class _Elsewhere:
    """A client of the other process."""

    def __init__(self, web: WebProcess) -> None:
        self._port = web.port

    def post(self, request: dict[str, Any], token: str | None = None, query: str = DRY) -> tuple[Any, str]:
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            connection.request(
                "POST",
                f"/v1/scores?{query}",
                json.dumps(request),
                headers if token is None else {**headers, HEADER: token},
            )
            response = connection.getresponse()
            body = json.loads(response.read())
            assert response.status == 200, body
            return body, response.headers[HEADER]
        finally:
            connection.close()


def _in_turn(world: World, customer: str, number: int) -> dict[str, Any]:
    """A transaction of this customer's, each a second after the one before."""
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=number)
    return world.request(customer_id=customer, occurred_at=at.isoformat())


def test_a_client_sees_its_own_transaction_in_another_process(remembering: World, other: WebProcess) -> None:
    """Whose memory holds the activity of before: without the token it serves that, with it the client's own is there.

    In both directions, since each process writes what the other one remembers.
    """
    world, elsewhere, customer = remembering, _Elsewhere(other), remembering.newcomer()
    elsewhere.post(_in_turn(world, customer, 0), query="")
    answer = _post(world, _in_turn(world, customer, 1), query="include=features")
    assert _count(answer.json()) == 2
    third = _in_turn(world, customer, 2)
    assert _count(elsewhere.post(third)[0]) == 2, "the other process is to remember what was before"
    body, token = elsewhere.post(third, answer.headers[HEADER], query="include=features")
    assert _count(body) == 3
    fourth = _in_turn(world, customer, 3)
    assert _count(_post(world, fourth).json()) == 3
    assert _count(_post(world, fourth, token).json()) == 4


def test_a_newcomer_that_another_process_knows_to_be_unknown(remembering: World, other: WebProcess) -> None:
    """That nobody knows it is a copy like any other: the client who has made it known is not told so again."""
    world, elsewhere, customer = remembering, _Elsewhere(other), remembering.newcomer()
    second = _in_turn(world, customer, 1)
    assert _count(elsewhere.post(second)[0]) == 1
    elsewhere.post({**second, "transaction_id": "t-unknown", "customer_id": world.newcomer()})
    token = _post(world, _in_turn(world, customer, 0), query="").headers[HEADER]
    assert _count(elsewhere.post(second, token)[0]) == 2


def test_a_token_names_what_was_read_and_what_was_written(world: World) -> None:
    """Each group in its version; the written one in that of the row that the answer acknowledges."""
    request = world.request()
    before = FeatureRow.objects.get(group=CUSTOMER_ACTIVITY.name, entity_id=world.customer).version
    versions = read_header(_post(world, request, query="").headers[HEADER])
    rows = {(row.group, row.entity_id): row.version for row in FeatureRow.objects.all()}
    assert versions == {key: rows[key.group, key.id] for key in versions}
    assert {key.group for key in versions if key.kind == "customer"} == {
        "customer_profile",
        "customer_activity",
        "customer_embedding",
    }
    assert len(versions) == 6
    assert versions[_activity(world.customer)] > before


def test_a_dry_run_has_written_nothing_and_says_what_it_read(world: World) -> None:
    """The version of before."""
    row = FeatureRow.objects.get(group=CUSTOMER_ACTIVITY.name, entity_id=world.customer)
    versions = read_header(_post(world, world.request()).headers[HEADER])
    assert versions[_activity(world.customer)] == row.version


def test_strangers_have_no_versions(world: World) -> None:
    """The token is there all the same, and empty."""
    request = world.request(customer_id=world.newcomer(), merchant_id=world.newcomer("merchant"))
    assert read_header(_post(world, request).headers[HEADER]) == {}


@pytest.fixture
def outdated(world: World, redis_client: redis.Redis) -> dict[str, Any]:
    """A customer's second transaction, committed and answered; the cache has what was true after the first."""
    customer = world.newcomer()
    name = names_of("customer", customer, 1).record
    _post(world, _in_turn(world, customer, 0), query="")
    first: dict[Any, Any] = redis_client.hgetall(name)
    second = _in_turn(world, customer, 1)
    _post(world, second, query="")
    redis_client.hset(name, mapping=first)
    world.forget_l1()
    return second


def test_a_repetition_names_the_version_that_has_its_transaction(world: World, outdated: dict[str, Any]) -> None:
    """A client that lost the first answer sends its request again, and sees its transaction from then on.

    Although the copies that were read for the repetition are those of before.
    """
    third = _in_turn(world, outdated["customer_id"], 2)
    assert _count(_post(world, third).json()) == 2
    again = _post(world, outdated, query="")
    assert again.headers["Idempotent-Replayed"] == "true"
    row = FeatureRow.objects.get(group=CUSTOMER_ACTIVITY.name, entity_id=outdated["customer_id"])
    assert read_header(again.headers[HEADER])[_activity(row.entity_id)] == row.version
    assert _count(_post(world, third, again.headers[HEADER]).json()) == 3


def test_an_imported_transaction_that_is_scored_names_the_version_that_has_it(
    world: World, outdated: dict[str, Any]
) -> None:
    """The ledger knows it, but nobody had decided; so nothing is written, and what is read may be of before."""
    Decision.objects.filter(pk=outdated["transaction_id"]).delete()
    answer = _post(world, outdated, query="")
    assert "Idempotent-Replayed" not in answer.headers
    row = FeatureRow.objects.get(group=CUSTOMER_ACTIVITY.name, entity_id=outdated["customer_id"])
    assert read_header(answer.headers[HEADER])[_activity(row.entity_id)] == row.version


def test_copies_that_are_new_enough_serve_a_client_with_a_token(world: World) -> None:
    """From memory where they lie there: a token makes nobody read PostgreSQL that need not."""
    token = _post(world, world.request(), query="").headers[HEADER]
    world.settle()
    body = _post(world, world.request(), token).json()
    assert {one["tier"] for one in body["features"]} <= {"request", "l1", "l2"}


def test_a_token_of_other_entities_says_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names neither this customer nor this merchant, so the score takes the hot path through L1."""
    for name in GROUPS:
        world.edit_policy(name, use_l1=True)
    world.score()
    world.settle()
    slow = Mock(wraps=engine().l1.get_many)
    monkeypatch.setattr(engine().l1, "get_many", slow)
    token = token_of({_activity("somebody-else"): 2**62})
    body = _post(world, world.request(), token, query="include=features").json()
    assert {one["tier"] for one in body["features"]} == {"request", "l1"}
    assert {key.kind for call in slow.call_args_list for key in call.args[0]} <= {PREDICTION}


def test_while_postgres_is_away_an_older_copy_serves_flagged_and_takes_nothing_away(
    world: World, postgres: ServerHandle
) -> None:
    """The answer's token keeps the version that the client had seen."""
    _post(world, world.request(), query="")
    world.settle()
    key = _activity(world.customer)
    seen = {key: 2**62}
    postgres.stop()
    answer = _post(world, world.request(), token_of(seen))
    body = answer.json()
    count = next(one for one in body["features"] if one["name"] == "customer_count_1d")
    assert (count["tier"], count["stale"]) == ("l2", True)
    assert body["degraded_reasons"] == ["stale", "stale_source_unavailable"]
    assert read_header(answer.headers[HEADER])[key] == 2**62


def test_what_postgres_has_lost_is_not_asked_for_again(world: World) -> None:
    """After a failover that lost commits a client gets what there is, and a token that is content with it."""
    key = _activity(world.customer)
    answer = _post(world, world.request(), token_of({key: 2**62}))
    assert not answer.json()["degraded"]
    assert read_header(answer.headers[HEADER])[key] < 2**62


def test_a_spooled_decision_names_what_was_read(world: World, postgres: ServerHandle) -> None:
    """PostgreSQL has given no version yet, and the answer says that it is spooled."""
    first = read_header(_post(world, world.request(), query="").headers[HEADER])
    world.settle()
    postgres.stop()
    answer = _post(world, world.request(), query="")
    assert "decision_spooled" in answer.json()["degraded_reasons"]
    assert spool.pending_files()
    assert read_header(answer.headers[HEADER])[_activity(world.customer)] == first[_activity(world.customer)]


@pytest.mark.parametrize("token", ["nonsense", "A" * 200, "x" * 5_000])
def test_a_token_that_is_none_is_refused(world: World, token: str) -> None:
    """With the header's name, before anything is recorded."""
    request = world.request()
    answer = _post(world, request, token, query="")
    body = answer.json()
    assert (answer.status_code, body["code"]) == (400, "invalid_parameter")
    assert [error["parameter"] for error in body["errors"]] == [HEADER]
    assert world.stored(request["transaction_id"]) is None


def test_looking_at_features_gives_a_token_too(world: World) -> None:
    """Of what PostgreSQL says, deleted rows included; a score with it knows no less."""
    answer = world.client.get(f"/v1/features/customer/{world.customer}")
    rows = FeatureRow.objects.filter(entity_id=world.customer, group__startswith="customer")
    assert read_header(answer.headers[HEADER]) == {
        Key("customer", world.customer, row.group): row.version for row in rows
    }
    assert "version" not in answer.json()["groups"][0]


def test_a_deletion_that_was_looked_at_stays(world: World) -> None:
    """L2 has the values of before and nobody has told it."""
    merchant = "M9"
    world.score(merchant_id=merchant)
    world.settle()
    row = FeatureRow.objects.get(group="merchant_risk", entity_id=merchant)
    FeatureRow.objects.filter(pk=row.pk).update(deleted_at=datetime.now(UTC))
    try:
        token = world.client.get(f"/v1/features/merchant/{merchant}").headers[HEADER]
        body = _post(world, world.request(merchant_id=merchant), token).json()
        tiers = {one["name"]: one["tier"] for one in body["features"]}
        assert tiers["merchant_risk_7d"] == "default"
        without = {
            one["name"]: one["tier"] for one in _post(world, world.request(merchant_id=merchant)).json()["features"]
        }
        assert without["merchant_risk_7d"] == "l1"
    finally:
        FeatureRow.objects.filter(pk=row.pk).update(deleted_at=None)
