"""The cache's server dies, freezes and comes back: scores go on, say so, and find no stale copy afterwards."""

import pytest
import redis

from features.vectors import invalidate_entity
from mlserve.cache.breaker import State
from mlserve.cache.codec import IDENTITY_BYTES
from mlserve.cache.keys import names_of
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.wiring import engine, l2_client
from tests.fixtures.population import Answer, World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until


@pytest.fixture
def warm(world: World) -> World:
    """L2 has the customer's and the merchant's groups, L1 is empty, and nothing runs in the background."""
    world.score()
    world.settle()
    world.forget_l1()
    engine().stop()
    return world


def _l2_misses() -> dict[MissReason, int]:
    """Feature look-ups that L2 did not answer, by reason."""
    found: dict[MissReason, int] = {}
    for what, count in engine().recorder.totals().items():
        match what:
            case ("miss", Tier.L2, _, MissReason() as reason):
                found[reason] = found.get(reason, 0) + int(count)
    return found


def _source_tiers(answer: Answer) -> set[str]:
    return {tier for tier in answer.tiers.values() if tier != "request"}


def test_scores_go_on_without_valkey_and_say_so(warm: World, valkey_cache: ServerHandle) -> None:
    """Killed: nothing fails, nothing waits, the source answers what L1 cannot."""
    before = warm.score(options="include=features,trace&dry_run=true")
    valkey_cache.kill()
    for _ in range(3):
        warm.forget_l1()
        answer = warm.score()
        assert answer.status == 200
        assert answer.body["degraded_reasons"] == ["cache_unavailable"]
        assert _source_tiers(answer) == {"l3"}
        assert answer.seconds < 1
    assert engine().l2_breaker.state is State.OPEN
    assert before.body["model"] == answer.body["model"]
    assert warm.stored(answer.body["transaction_id"]) is not None


def test_a_valkey_that_comes_back_empty_is_filled_again(warm: World, valkey_cache: ServerHandle) -> None:
    """The prober closes the breaker, the next score is cold and says nothing of degradation, the one after is warm."""
    valkey_cache.kill()
    warm.score()
    warm.score()
    valkey_cache.start()
    engine().start()
    until(lambda: engine().l2_breaker.state is State.CLOSED)
    until(lambda: len(engine().pending) == 0)
    warm.forget_l1()
    cold = warm.score()
    assert not cold.body["degraded"]
    assert _source_tiers(cold) == {"l3"}
    warm.settle()
    warm.forget_l1()
    assert _source_tiers(warm.score()) == {"l2"}


@pytest.mark.quiet
def test_a_frozen_valkey_costs_one_request_one_timeout(warm: World, valkey_cache: ServerHandle) -> None:
    """The first waits once, for all of its keys; later ones are refused by the breaker without asking."""
    valkey_cache.freeze()
    first = warm.score()
    assert first.status == 200
    assert first.body["degraded_reasons"] == ["cache_unavailable"]
    assert _l2_misses()[MissReason.TIMEOUT] == 6
    assert 45 <= first.tier("l2")["ms"] < 500  # type: ignore[index]
    assert first.seconds < 1
    for _ in range(5):
        warm.forget_l1()
        later = warm.score()
        assert later.body["degraded_reasons"] == ["cache_unavailable"]
        assert later.tier("l2")["ms"] < 10  # type: ignore[index]
    assert _l2_misses()[MissReason.TIMEOUT] == 6
    assert _l2_misses()[MissReason.BREAKER] == 30
    assert engine().l2_breaker.opened_count == 1


def test_a_thawed_valkey_is_used_again(warm: World, valkey_cache: ServerHandle) -> None:
    """The prober finds out; no request has to try."""
    valkey_cache.freeze()
    warm.score()
    valkey_cache.thaw()
    assert engine().l2_breaker.state is State.OPEN
    engine().start()
    until(lambda: engine().l2_breaker.state is State.CLOSED)
    warm.forget_l1()
    answer = warm.score()
    assert not answer.body["degraded"]
    assert answer.tiers["merchant_risk_1d"] == "l2"


def test_a_copy_that_could_not_be_replaced_is_gone_before_it_is_read(
    warm: World, valkey_cache: ServerHandle, redis_client: redis.Redis
) -> None:
    """A score during the freeze makes L2's copy of the activity stale; the next reader sees both transactions."""
    customer = warm.newcomer()
    assert warm.score(customer_id=customer).status == 200
    warm.settle()
    name = names_of("customer", customer, 1).record
    old_copy = redis_client.hget(name, "customer_activity")
    assert old_copy is not None
    valkey_cache.freeze()
    assert warm.score(customer_id=customer).values["customer_count_1d"] == 2
    assert len(engine().pending) == 1
    valkey_cache.thaw()
    assert redis_client.hget(name, "customer_activity") == old_copy
    engine().start()
    until(lambda: engine().l2_breaker.state is State.CLOSED)
    assert redis_client.hget(name, "customer_activity") != old_copy
    third = warm.score(customer_id=customer)
    assert third.values["customer_count_1d"] == 3
    assert third.tiers["customer_count_1d"] == "l3"
    until(lambda: len(engine().pending) == 0)


@pytest.mark.parametrize("outage", ["freeze", "kill"])
def test_an_invalidation_during_an_outage_is_delivered_after_it(
    warm: World, valkey_cache: ServerHandle, redis_client: redis.Redis, outage: str
) -> None:
    """It is said to be pending; once Valkey is back, nothing but tombstones is there."""
    name = names_of("customer", warm.customer, 1).record
    assert redis_client.hlen(name) == 3
    getattr(valkey_cache, outage)()
    for _ in range(3):
        assert not invalidate_entity(entity="customer", entity_id=warm.customer)["delivered"]
    assert len(engine().pending) == 3
    valkey_cache.mend()
    engine().start()
    until(lambda: len(engine().pending) == 0)
    assert engine().l2_breaker.state is State.CLOSED
    assert all(len(record) == IDENTITY_BYTES for record in redis_client.hvals(name))
    assert invalidate_entity(entity="merchant", entity_id=warm.merchant)["delivered"]


def test_a_request_that_finds_its_own_pool_exhausted_goes_to_the_source(warm: World) -> None:
    """That is load, not death: the breaker stays closed."""
    pool = l2_client().connection_pool
    taken = [pool.get_connection() for _ in range(pool.max_connections)]
    try:
        answer = warm.score()
    finally:
        for connection in taken:
            pool.release(connection)
    assert answer.body["degraded_reasons"] == ["cache_unavailable"]
    assert engine().l2_breaker.state is State.CLOSED
    assert not warm.score().body["degraded"]
