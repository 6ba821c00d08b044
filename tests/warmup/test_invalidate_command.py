"""`manage.py invalidate` on real servers: what it drops, what it says, and how it ends."""

import io
import json
import threading
from typing import Any

import pytest
import redis
from django.core.management import CommandError, call_command

from features.definitions import GROUPS_OF_ENTITY
from mlserve.cache.keys import names_of
from mlserve.cache.wiring import engine
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

CUSTOMER_GROUPS = [group.name for group in GROUPS_OF_ENTITY["customer"]]
TOMBSTONE_BYTES = 17


def _run(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    call_command("invalidate", *arguments, "--json", stdout=out)
    answer: dict[str, Any] = json.loads(out.getvalue())
    return answer


def _text(*arguments: str) -> str:
    out = io.StringIO()
    call_command("invalidate", *arguments, stdout=out)
    return out.getvalue()


def _refused(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        call_command("invalidate", *arguments, stdout=io.StringIO())
    return caught.value


@pytest.fixture
def warm(world: World) -> World:
    world.score()
    world.settle()
    return world


def _copies(world: World) -> dict[str, set[str]]:
    """By group: the tiers of the cache that have a copy of the customer's."""
    groups = json.loads(world.client.get(f"/v1/features/customer/{world.customer}").content)["groups"]
    return {group["group"]: {copy["tier"] for copy in group["copies"]} - {"l3"} for group in groups}


def test_every_copy_goes_and_the_next_score_reads_the_source(warm: World, redis_client: redis.Redis) -> None:
    """L2 keeps tombstones, which keep out what comes late; the merchant's copies stay."""
    answer = _run("customer", warm.customer)
    assert answer == {
        "entity": "customer",
        "id": warm.customer,
        "groups": CUSTOMER_GROUPS,
        "held": CUSTOMER_GROUPS,
        "delivered": True,
    }
    assert set().union(*_copies(warm).values()) == set()
    records = redis_client.hgetall(names_of("customer", warm.customer, 1).record)
    assert {len(record) for record in records.values()} == {TOMBSTONE_BYTES}
    tiers = warm.score(options="dry_run=true&include=features,trace").tiers
    assert tiers["customer_count_1d"] == "l3"
    assert tiers["merchant_risk_1d"] == "l1"


def test_one_group_can_be_named_or_several(warm: World) -> None:
    """The others keep their copies."""
    assert _run("customer", warm.customer, "--group", "customer_profile")["groups"] == ["customer_profile"]
    copies = _copies(warm)
    assert copies["customer_profile"] == set()
    assert "l2" in copies["customer_activity"] and "l2" in copies["customer_embedding"]
    rest = ("--group", "customer_embedding", "--group", "customer_activity")
    assert _run("customer", warm.customer, *rest)["held"] == ["customer_activity", "customer_embedding"]


def test_an_id_that_never_existed_is_no_error(warm: World) -> None:
    """Nothing was held, and the command says so; so it does the second time."""
    stranger = warm.newcomer()
    assert _run("customer", stranger)["held"] == []
    assert "nothing" in _text("customer", stranger)
    assert "customer_profile" in _text("customer", warm.customer)
    assert "nothing" in _text("customer", warm.customer)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["customer", "C 1"], "C 1"),
        (["customer", ".."], "not dots alone"),
        (["customer", "C1", "--group", "merchant_risk"], "customer_profile"),
        (["merchant", "M1", "--group", "merchant_risk", "--group", "all"], "'all'"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(warm: World, arguments: list[str], named: str) -> None:
    """Exit code 2, and nothing was dropped."""
    error = _refused(*arguments)
    assert error.returncode == 2
    assert named in str(error)
    assert _copies(warm)["customer_profile"] == {"l1", "l2"}


@pytest.mark.parametrize(
    ("arguments", "allowed"), [(["shop", "M1"], "merchant"), (["customer", "C1", "--wait", "-1"], "0 to 3600")]
)
def test_other_entities_and_times_are_refused_by_the_parser(world: World, arguments: list[str], allowed: str) -> None:
    """With what is allowed."""
    assert allowed in str(_refused(*arguments))


def test_a_cache_that_is_away_is_a_failure(warm: World, valkey_cache: ServerHandle) -> None:
    """Exit code 1: what is pending would end with the process, so the command says that it has to be run again."""
    valkey_cache.kill()
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("invalidate", "customer", warm.customer, "--wait", "0", "--json", stdout=out)
    assert caught.value.returncode == 1
    assert "Nothing is pending" in str(caught.value)
    answer = json.loads(out.getvalue())
    assert (answer["delivered"], answer["held"]) == (False, None)


def test_it_waits_for_a_cache_that_comes_back(warm: World, valkey_cache: ServerHandle) -> None:
    """A frozen one answers after all: delivered, exit code 0."""
    valkey_cache.freeze()
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(_run("customer", warm.customer, "--wait", "60")))
    thread.start()
    until(lambda: len(engine().pending) == len(CUSTOMER_GROUPS))
    valkey_cache.thaw()
    thread.join(60)
    assert answers[0]["delivered"]
    assert set().union(*_copies(warm).values()) == set()
