import io
import json
import sys
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from features.definitions import GROUPS_OF_ENTITY
from mlserve.cache.wiring import engine
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle


def _run(*arguments: str) -> Any:
    out = io.StringIO()
    call_command(*arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def _refused(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        call_command(*arguments)
    return caught.value


def test_warmup_reports_what_it_did(world: World) -> None:
    """Machine-readable, with the counts adding up."""
    report = _run("warmup", "--most-active", "5")
    assert (report["source"], report["entities"], report["keys_asked"]) == ("most_active", 10, 30)
    assert report["keys_fresh"] + report["keys_loaded"] == 30
    assert report["stopped"] == ""


def test_warmup_of_hot_keys_is_by_live_traffic(world: World) -> None:
    """The same work as the task's."""
    world.score()
    engine().publish()
    assert _run("warmup", "--hot")["entities"] == 2
    assert _run("warmup", "--hot", "1")["entities"] == 1


@pytest.mark.parametrize("limit", ["0", "-3", "1000000000"])
def test_a_limit_that_is_none_is_a_usage_error(world: World, limit: str) -> None:
    """Exit code 2, with the range."""
    error = _refused("warmup", "--most-active", limit)
    assert error.returncode == 2
    assert "1 to 1,000,000" in str(error)


def test_warmup_that_ended_early_has_failed(world: World, valkey_cache: ServerHandle) -> None:
    """Exit code 1, with the reason."""
    valkey_cache.kill()
    error = _refused("warmup")
    assert error.returncode == 1
    assert "l2" in str(error)


def test_score_takes_the_path_of_the_api(world: World) -> None:
    """The same transaction sent to the API afterwards gets the stored decision."""
    request = world.request(amount=33.25)
    arguments = ("--customer", request["customer_id"], "--merchant", request["merchant_id"], "--amount", "33.25")
    answer = _run(
        "score", *arguments, "--at", request["occurred_at"], "--id", request["transaction_id"], "--include", "features"
    )
    assert answer["transaction_id"] == request["transaction_id"]
    assert answer["features"]
    again = world.post(request)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.body["score"] == answer["score"]


def test_score_reads_json_from_stdin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API's document; a dry run stores nothing."""
    request = world.request()

    class Stdin:
        buffer = io.BytesIO(json.dumps(request).encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert _run("score", "-", "--dry-run")["transaction_id"] == request["transaction_id"]
    assert world.stored(request["transaction_id"]) is None


def test_score_of_broken_json_is_a_usage_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every document that the caller can mend."""

    class Stdin:
        buffer = io.BytesIO(b'{"transaction_id":')

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert _refused("score", "-").returncode == 2


def test_score_without_json_is_for_people(world: World) -> None:
    """Decision, model, tiers and features with their ages."""
    out = io.StringIO()
    call_command(
        *("score", "--customer", world.newcomer(), "--merchant", "M1", "--amount", "12", "--dry-run"),
        *("--include", "features,trace,reasons"),
        stdout=out,
    )
    text = out.getvalue()
    assert "probability of fraud" in text
    assert "cold start   yes" in text and "degraded     no" in text
    assert "customer_count_1d" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--customer", "C1"], "--merchant, --amount"),
        (["--customer", "C1", "--merchant", "M1", "--amount", "much"], "--amount 'much'"),
        (["--customer", "C1", "--merchant", "M1", "--amount", "nan"], "--amount 'nan'"),
        (["--customer", "C 1", "--merchant", "M1", "--amount", "1"], "customer_id"),
        (["--customer", "C1", "--merchant", "M1", "--amount", "1", "--at", "noon"], "occurred_at"),
        (["--customer", "C1", "--merchant", "M1", "--amount", "1", "--include", "all"], "include"),
    ],
)
def test_score_names_the_field_that_is_wrong(world: World, arguments: list[str], named: str) -> None:
    """Exit code 2: the caller can mend it."""
    error = _refused("score", *arguments)
    assert named in str(error)
    assert error.returncode == 2


def test_feature_shows_every_copy_and_changes_none(world: World) -> None:
    """Before a score only Postgres has something, after it L2 as well; looking fills nothing."""
    before = _run("feature", "customer", world.customer)
    assert {copy["tier"] for group in before["groups"] for copy in group["copies"]} == {"l3"}
    world.score()
    world.settle()
    world.forget_l1()
    after = _run("feature", "customer", world.customer)
    assert [[copy["tier"] for copy in group["copies"]] for group in after["groups"]] == [["l2", "l3"]] * 3
    assert len(engine().l1.store) == 0


def test_feature_of_somebody_unknown_says_so(world: World) -> None:
    """For people, with every group."""
    out = io.StringIO()
    call_command("feature", "merchant", world.newcomer("merchant"), stdout=out)
    assert out.getvalue().count("nothing known") == len(GROUPS_OF_ENTITY["merchant"])


@pytest.mark.parametrize("entity_id", ["a b", "", "a\0", "..", "x" * 65])
def test_feature_refuses_the_ids_that_the_api_refuses(world: World, entity_id: str) -> None:
    """Exit code 2, with the rule."""
    error = _refused("feature", "customer", entity_id)
    assert error.returncode == 2
    assert "1 to 64" in str(error)


def test_live_traffic_needs_a_key_in_the_environment(world: World) -> None:
    """Exit code 2; the message names the variable."""
    error = _refused("live_traffic")
    assert error.returncode == 2
    assert "MLSERVE_API_KEY" in str(error)
