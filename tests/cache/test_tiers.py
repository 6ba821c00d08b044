import random
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from mlserve.cache.breaker import Breaker, State
from mlserve.cache.codec import encode
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, redis_name
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.tiers.base import CacheTier
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.cache.tiers.null import NullTier
from mlserve.cache.tiers.request import RequestTier
from tests.cache.doubles import KeptStats, MemoryTier, entry, policy
from tests.cache.tier_contract import CUSTOMER, MERCHANT, POLICIES, SAME_ENTITY, TierContract
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle


class TestRequestTier(TierContract):
    replaces = False

    @pytest.fixture
    def tier(self) -> CacheTier:
        return RequestTier()


class TestNullTier(TierContract):
    holds = False

    @pytest.fixture
    def tier(self) -> CacheTier:
        return NullTier(Tier.L2)


class TestMemoryTier(TierContract):
    """The double keeps the contract that the real ones keep."""

    @pytest.fixture
    def tier(self) -> CacheTier:
        return MemoryTier(Tier.L2)


class TestL1Tier(TierContract):
    @pytest.fixture
    def tier(self) -> CacheTier:
        return L1Tier(BoundedStore(100, 100_000))

    def test_a_peek_does_not_make_an_entry_recent(self) -> None:
        """Of three in a store for three, the one that was only peeked at goes first; the one that was read stays."""
        tier = L1Tier(BoundedStore(3, 3_000))
        first, second, third, fourth = (Key("customer", name, "profile") for name in "abcd")
        tier.put_many(dict.fromkeys((first, second, third), entry()), POLICIES)
        tier.peek_many([first], POLICIES)
        tier.put_many({fourth: entry()}, POLICIES)
        assert tier.peek_many([first], POLICIES)[first] is MissReason.COLD
        tier.get_many([second], POLICIES)
        tier.put_many({first: entry()}, POLICIES)
        assert tier.peek_many([second], POLICIES)[second] == entry()
        assert tier.store.evictions == 2

    def test_an_entry_is_handed_out_by_reference(self) -> None:
        """No copy, no decoding: the very object that was put."""
        tier, held = L1Tier(BoundedStore(3, 3_000)), entry()
        tier.put_many({CUSTOMER: held}, POLICIES)
        assert tier.get_many([CUSTOMER], POLICIES)[CUSTOMER] is held

    def test_the_store_is_bounded_by_bytes(self) -> None:
        """Few large entries push out as much as many small ones; one larger than the store leaves nothing behind."""
        store = BoundedStore(1_000, 10_000)
        tier = L1Tier(store)
        keys = [Key("customer", str(i), "profile") for i in range(50)]
        tier.put_many({key: Entry(1, 0.0, 0.0, (0.0,) * 50) for key in keys}, POLICIES)
        assert store.weight_bytes <= 10_000
        assert len(store) == 10_000 // Entry(1, 0.0, 0.0, (0.0,) * 50).size_bytes
        assert store.evictions == 50 - len(store)
        tier.put_many({keys[-1]: Entry(2, 0.0, 0.0, (0.0,) * 1_000)}, POLICIES)
        assert tier.peek_many([keys[-1]], POLICIES)[keys[-1]] is MissReason.COLD


@pytest.fixture
def breaker() -> Breaker:
    return Breaker("l2", ManualClock(), random_source=random.Random(0))


@pytest.fixture
def stats() -> KeptStats:
    return KeptStats()


class _CountingConnection(redis.Connection):
    """Counts what is handed to the socket: a pipeline is one."""

    sent = 0

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        type(self).sent += 1
        super().send_packed_command(command, check_health)


@pytest.fixture
def l2(redis_client: redis.Redis, breaker: Breaker, stats: KeptStats) -> Iterator[L2Tier]:
    # As Django's alias connects: no retries, and the budget as the time-out.
    options = redis_client.connection_pool.connection_kwargs
    pool = redis.ConnectionPool(
        connection_class=_CountingConnection,
        host=options["host"],
        port=options["port"],
        password=options.get("password"),
        username=options.get("username"),
        db=options.get("db", 0),
        socket_timeout=0.05,
        socket_connect_timeout=0.05,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    )
    client = redis.Redis(connection_pool=pool)
    yield L2Tier(lambda: client, breaker, stats)
    client.close()


class TestL2Tier(TierContract):
    @pytest.fixture
    def tier(self, l2: L2Tier) -> CacheTier:
        return l2

    def test_a_look_up_is_one_round_trip(self, l2: L2Tier, redis_client: redis.Redis) -> None:
        """However many entities and groups: one HMGET an entity, all in one pipeline."""
        l2.put_many({CUSTOMER: entry(), SAME_ENTITY: entry(), MERCHANT: entry()}, POLICIES)
        redis_client.config_resetstat()
        before = _CountingConnection.sent
        l2.get_many([CUSTOMER, SAME_ENTITY, MERCHANT], POLICIES)
        assert _CountingConnection.sent - before == 1
        assert _hmgets(redis_client) == 2

    def test_values_too_old_for_any_policy_leave_redis_by_themselves(
        self, l2: L2Tier, redis_client: redis.Redis
    ) -> None:
        """Each field carries its own upper limit: fresh and grace together, negative entries theirs."""
        l2.put_many({CUSTOMER: entry(), SAME_ENTITY: Entry(1, 0.0, 0.0, None)}, POLICIES)
        kept_ms = redis_client.hpttl(redis_name("customer", "c1"), "profile", "risk")
        assert 655_000 < kept_ms[0] <= 660_000
        assert 0 < kept_ms[1] <= 5_000

    def test_the_script_compares_versions_that_a_double_cannot_tell_apart(self, l2: L2Tier, stats: KeptStats) -> None:
        """2**53 + 1 is newer than 2**53; what is refused for that is counted."""
        l2.put_many({CUSTOMER: entry(2**53 + 1)}, POLICIES)
        assert l2.put_many({CUSTOMER: entry(2**53)}, POLICIES)
        assert cast(Entry, l2.get_many([CUSTOMER], POLICIES)[CUSTOMER]).version == 2**53 + 1
        assert stats.refused == {(Tier.L2, "newer"): 1}

    @pytest.mark.parametrize(
        "torn",
        [b"", b"garbage", b"\x80\x04\x95.", b"0000000000000000009V", b"x" * 2_000_000],
        ids=["empty", "text", "pickle", "cut off", "2 MB"],
    )
    def test_bytes_that_are_no_record_are_a_miss_and_are_replaced(
        self, l2: L2Tier, redis_client: redis.Redis, torn: bytes
    ) -> None:
        """Whoever put them there: the reason is `decode`, the neighbours are fine, and the next fill heals."""
        l2.put_many({SAME_ENTITY: entry()}, POLICIES)
        redis_client.hset(redis_name("customer", "c1"), "profile", torn)
        assert l2.get_many([CUSTOMER, SAME_ENTITY], POLICIES) == {CUSTOMER: MissReason.DECODE, SAME_ENTITY: entry()}
        assert l2.put_many({CUSTOMER: entry(9)}, POLICIES)
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: entry(9)}

    def test_a_value_that_is_no_hash_under_our_name_is_a_miss(
        self, l2: L2Tier, redis_client: redis.Redis, breaker: Breaker
    ) -> None:
        """No outage: the breaker stays closed. The next fill replaces it, and so does an invalidation."""
        name = redis_name("customer", "c1")
        redis_client.set(name, "not ours")
        assert l2.get_many([CUSTOMER, MERCHANT], POLICIES) == {CUSTOMER: MissReason.DECODE, MERCHANT: MissReason.COLD}
        assert breaker.state is State.CLOSED
        assert l2.put_many({CUSTOMER: entry()}, POLICIES)
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: entry()}
        redis_client.delete(name)
        redis_client.set(name, "not ours")
        assert l2.drop_many([CUSTOMER])
        assert not redis_client.exists(name)

    def test_a_record_of_another_schema_or_another_entity_is_a_miss(
        self, l2: L2Tier, redis_client: redis.Redis
    ) -> None:
        """A record that was moved or that another release wrote is never taken for ours."""
        name = redis_name("customer", "c1")
        redis_client.hset(name, "profile", encode(CUSTOMER, name, 2, entry()))
        redis_client.hset(name, "risk", encode(MERCHANT, redis_name("merchant", "m1"), 1, entry()))
        assert l2.get_many([CUSTOMER, SAME_ENTITY], POLICIES) == {
            CUSTOMER: MissReason.SCHEMA,
            SAME_ENTITY: MissReason.DECODE,
        }

    def test_a_peek_leaves_nothing_behind(self, l2: L2Tier, redis_client: redis.Redis) -> None:
        """Not a byte of the database differs, and no time to live is extended."""
        l2.put_many({CUSTOMER: entry()}, POLICIES)
        name = redis_name("customer", "c1")
        before = (redis_client.keys(), redis_client.hgetall(name), redis_client.hpexpiretime(name, "profile"))
        l2.peek_many([CUSTOMER, MERCHANT], POLICIES)
        assert (redis_client.keys(), redis_client.hgetall(name), redis_client.hpexpiretime(name, "profile")) == before

    def test_a_frozen_server_costs_one_timeout(
        self, l2: L2Tier, valkey_cache: ServerHandle, breaker: Breaker, stats: KeptStats
    ) -> None:
        """Then the breaker refuses reads and fills at once; an invalidation is tried all the same, and says no."""
        l2.get_many([CUSTOMER], POLICIES)
        valkey_cache.freeze()
        assert l2.get_many([CUSTOMER, MERCHANT], POLICIES) == dict.fromkeys((CUSTOMER, MERCHANT), MissReason.TIMEOUT)
        assert breaker.state is State.OPEN
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.BREAKER}
        assert not l2.put_many({CUSTOMER: entry(), MERCHANT: entry()}, POLICIES)
        assert stats.refused == {(Tier.L2, "breaker"): 2}
        assert not l2.drop_many([CUSTOMER])

    def test_a_dead_server_is_left_alone_after_two_refusals(
        self, l2: L2Tier, valkey_cache: ServerHandle, breaker: Breaker
    ) -> None:
        """A refused connection is cheap, so one alone may have been bad luck."""
        valkey_cache.kill()
        for _ in range(2):
            assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.TIMEOUT}
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.BREAKER}
        valkey_cache.start()
        l2.ping()
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.COLD}

    def test_a_policy_decides_the_schema_that_is_read(self, l2: L2Tier) -> None:
        l2.put_many({CUSTOMER: entry()}, POLICIES)
        later = {"profile": policy("profile", schema=2)}
        assert l2.get_many([CUSTOMER], later) == {CUSTOMER: MissReason.SCHEMA}


def _hmgets(client: redis.Redis) -> int:
    """How many the server has carried out since the counters were reset."""
    return int(client.info("commandstats")["cmdstat_hmget"]["calls"])
