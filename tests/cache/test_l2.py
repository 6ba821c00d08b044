from collections.abc import Callable
from typing import Any, cast

import pytest
import redis

from mlserve.cache.breaker import FIRST_INTERVAL_S, Breaker, State
from mlserve.cache.codec import encode
from mlserve.cache.entry import Entry
from mlserve.cache.keys import names_of
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.tiers.base import CacheTier
from mlserve.cache.tiers.l2_redis import REPLICAS, L2Tier
from mlserve.cache.tiers.wire import SingleNodeWire
from tests.cache.doubles import KeptStats, entry, negative, policy
from tests.cache.tier_contract import CUSTOMER, MERCHANT, POLICIES, SAME_ENTITY, TierContract
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle

NAMES = names_of(*CUSTOMER.entity, 1)


class _CountingConnection(redis.Connection):
    """Counts what is handed to the socket."""

    sent = 0

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        type(self).sent += 1
        super().send_packed_command(command, check_health)


class TestL2Tier(TierContract):
    @pytest.fixture
    def tier(self, l2: L2Tier) -> CacheTier:
        return l2

    def test_a_look_up_is_one_round_trip(self, l2: L2Tier, l2_client: redis.Redis, redis_client: redis.Redis) -> None:
        """However many entities and groups: one HMGET an entity, all sent at once."""
        l2_client.connection_pool.connection_class = _CountingConnection
        l2.put_many({CUSTOMER: entry(), SAME_ENTITY: entry(), MERCHANT: entry()}, POLICIES)
        redis_client.config_resetstat()
        before = _CountingConnection.sent
        l2.get_many([CUSTOMER, SAME_ENTITY, MERCHANT], POLICIES)
        assert _CountingConnection.sent - before == 1
        assert _hmgets(redis_client) == 2

    def test_an_entity_lives_as_long_as_its_longest_record(self, l2: L2Tier, redis_client: redis.Redis) -> None:
        """Fresh and grace together; a negative entry beside it changes nothing, alone it lives for its own time."""
        l2.put_many({CUSTOMER: entry(), SAME_ENTITY: negative(), MERCHANT: negative()}, POLICIES)
        assert 655_000 < redis_client.pttl(NAMES.record) <= 660_000
        assert 0 < redis_client.pttl(names_of(*MERCHANT.entity, 1).record) <= 5_000
        l2.put_many({SAME_ENTITY: negative(1)}, POLICIES)
        assert 655_000 < redis_client.pttl(NAMES.record) <= 660_000

    def test_an_entity_keeps_the_compact_encoding(self, l2: L2Tier, redis_client: redis.Redis) -> None:
        """No field has a life of its own: that would cost each entity a table, some 200 bytes more."""
        long = Entry(1, 0.0, 0.0, tuple(0.1 * number for number in range(60)))
        l2.put_many({CUSTOMER: long, SAME_ENTITY: entry()}, POLICIES)
        assert redis_client.object("encoding", NAMES.record) == b"listpack"
        assert redis_client.hpttl(NAMES.record, "profile", "risk") == [-1, -1]
        l2.drop_many([CUSTOMER])
        assert redis_client.object("encoding", NAMES.record) == b"listpack"

    def test_the_script_compares_versions_that_a_double_cannot_tell_apart(self, l2: L2Tier, stats: KeptStats) -> None:
        """2**53 + 1 is newer than 2**53; what is refused for that is counted."""
        l2.put_many({CUSTOMER: entry(2**53 + 1)}, POLICIES)
        assert l2.put_many({CUSTOMER: entry(2**53)}, POLICIES)
        assert cast(Entry, l2.get_many([CUSTOMER], POLICIES)[CUSTOMER]).version == 2**53 + 1
        assert stats.refused == {(Tier.L2, "newer"): 1}

    @pytest.mark.parametrize("older", [1, 2**32 - 1, 2**32, 2**32 + 5])
    def test_the_script_compares_both_halves_of_a_version(self, l2: L2Tier, older: int) -> None:
        """A larger lower half does not make up for a smaller upper one."""
        l2.put_many({CUSTOMER: entry(2 * 2**32 + 1)}, POLICIES)
        l2.put_many({CUSTOMER: entry(older)}, POLICIES)
        assert l2.get_many([CUSTOMER], POLICIES)[CUSTOMER] == entry(2 * 2**32 + 1)

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
        redis_client.hset(NAMES.record, "profile", torn)
        assert l2.get_many([CUSTOMER, SAME_ENTITY], POLICIES) == {CUSTOMER: MissReason.DECODE, SAME_ENTITY: entry()}
        assert l2.put_many({CUSTOMER: entry(9)}, POLICIES)
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: entry(9)}

    def test_a_value_that_is_no_hash_under_our_name_is_a_miss(
        self, l2: L2Tier, redis_client: redis.Redis, breaker: Breaker
    ) -> None:
        """No outage: the breaker stays closed. The next fill replaces it, and so does an invalidation."""
        redis_client.set(NAMES.record, "not ours")
        assert l2.get_many([CUSTOMER, MERCHANT], POLICIES) == {CUSTOMER: MissReason.DECODE, MERCHANT: MissReason.COLD}
        assert breaker.state is State.CLOSED
        assert l2.put_many({CUSTOMER: entry()}, POLICIES)
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: entry()}
        redis_client.delete(NAMES.record)
        redis_client.set(NAMES.record, "not ours")
        assert l2.drop_many([CUSTOMER])
        assert not redis_client.exists(NAMES.record)

    def test_a_record_of_another_schema_or_another_entity_is_a_miss(
        self, l2: L2Tier, redis_client: redis.Redis
    ) -> None:
        """A record that was moved or that another release wrote is never taken for ours."""
        redis_client.hset(NAMES.record, "profile", encode(CUSTOMER, NAMES.digest, 2, entry()))
        redis_client.hset(NAMES.record, "risk", encode(MERCHANT, names_of(*MERCHANT.entity, 1).digest, 1, entry()))
        assert l2.get_many([CUSTOMER, SAME_ENTITY], POLICIES) == {
            CUSTOMER: MissReason.SCHEMA,
            SAME_ENTITY: MissReason.DECODE,
        }

    def test_a_peek_leaves_nothing_behind(self, l2: L2Tier, redis_client: redis.Redis) -> None:
        """Not a byte of the database differs, and no time to live is extended."""
        l2.put_many({CUSTOMER: entry()}, POLICIES)
        name = NAMES.record.decode()
        before = (redis_client.keys(), redis_client.hgetall(name), redis_client.pexpiretime(name))
        l2.peek_many([CUSTOMER, MERCHANT], POLICIES)
        after = (redis_client.keys(), redis_client.hgetall(name), redis_client.pexpiretime(name))
        assert after == before

    def test_a_frozen_server_costs_one_timeout(
        self, l2: L2Tier, valkey_cache: ServerHandle, breaker: Breaker, stats: KeptStats
    ) -> None:
        """Then the breaker refuses reads, leases and fills at once; an invalidation is tried, and says no."""
        l2.get_many([CUSTOMER], POLICIES)
        valkey_cache.freeze()
        assert l2.get_many([CUSTOMER, MERCHANT], POLICIES) == dict.fromkeys((CUSTOMER, MERCHANT), MissReason.TIMEOUT)
        assert breaker.state is State.OPEN
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.BREAKER}
        assert l2.lease_many([CUSTOMER], {}, POLICIES).unavailable == {CUSTOMER.entity}
        assert not l2.put_many({CUSTOMER: entry(), MERCHANT: entry()}, POLICIES)
        assert stats.refused == {(Tier.L2, "breaker"): 2}
        assert not l2.drop_many([CUSTOMER])

    def test_a_dead_server_is_left_alone_after_two_refusals(
        self, l2: L2Tier, valkey_cache: ServerHandle, clock: ManualClock
    ) -> None:
        """A refused connection is cheap, so one alone may have been bad luck; a probe finds out when it is back."""
        valkey_cache.kill()
        for _ in range(2):
            assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.TIMEOUT}
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.BREAKER}
        valkey_cache.start()
        clock.advance(2 * FIRST_INTERVAL_S)
        l2.probe()
        assert l2.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.COLD}

    def test_a_policy_decides_the_schema_that_is_read(self, l2: L2Tier) -> None:
        l2.put_many({CUSTOMER: entry()}, POLICIES)
        later = {"profile": policy("profile", schema=2)}
        assert l2.get_many([CUSTOMER], later) == {CUSTOMER: MissReason.SCHEMA}


def test_a_hot_entity_has_copies_that_change_with_it(
    l2_client: redis.Redis, breaker: Breaker, stats: KeptStats
) -> None:
    """Who reads another copy fills it; a write reaches the copies that exist, an invalidation all of them."""
    wire = SingleNodeWire(lambda: l2_client, breaker)
    own, *others = (L2Tier(wire, stats, partitions=16, replica_of=_always(replica)) for replica in range(REPLICAS))
    own.put_many({CUSTOMER: entry(1)}, POLICIES)
    assert others[0].get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.COLD}
    granted = others[0].lease_many([CUSTOMER], {}, POLICIES).granted
    others[0].fill_many({CUSTOMER: entry(1)}, POLICIES, granted)
    own.put_many({CUSTOMER: entry(2)}, POLICIES)
    assert others[0].get_many([CUSTOMER], POLICIES) == {CUSTOMER: entry(2)}
    assert others[1].get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.COLD}
    own.drop_many([CUSTOMER])
    for tier in (own, others[0]):
        assert tier.get_many([CUSTOMER], POLICIES) == {CUSTOMER: MissReason.INVALIDATED}


def _always(replica: int) -> Callable[[str, str], int]:
    return lambda kind, entity_id: replica


def _hmgets(client: redis.Redis) -> int:
    """How many the server has carried out since the counters were reset."""
    return int(client.info("commandstats")["cmdstat_hmget"]["calls"])
