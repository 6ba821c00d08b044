"""The scripts that say who may load and fill, on a real Valkey."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from mlserve.cache.codec import IDENTITY_BYTES
from mlserve.cache.entry import Entry
from mlserve.cache.keys import names_of
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.tiers.base import Entity, LeaseAnswer, LeaseToken
from mlserve.cache.tiers.l2_redis import LEASE_MS, L2Tier
from tests.cache.doubles import KeptStats, entry, negative
from tests.cache.tier_contract import CUSTOMER, MERCHANT, POLICIES, SAME_ENTITY
from tests.fixtures.waiting import until

NAMES = names_of(*CUSTOMER.entity, 1)


def _ask(l2: L2Tier, seen: Entry | MissReason = MissReason.COLD) -> LeaseAnswer:
    """For the customer's one key, of which that was seen."""
    return l2.lease_many([CUSTOMER], {CUSTOMER: seen}, POLICIES)


def _lease(l2: L2Tier, seen: Entry | MissReason = MissReason.COLD) -> dict[Entity, LeaseToken]:
    granted = _ask(l2, seen).granted
    assert set(granted) == {CUSTOMER.entity}
    return granted


def _held(l2: L2Tier) -> Entry | MissReason:
    return l2.get_many([CUSTOMER], POLICIES)[CUSTOMER]


def test_one_of_many_gets_the_lease(l2: L2Tier) -> None:
    """Twenty that ask in the same moment: one loads, the others know that somebody does."""
    barrier = threading.Barrier(20)

    def ask() -> LeaseAnswer:
        barrier.wait()
        return _ask(l2)

    with ThreadPoolExecutor(20) as threads:
        answers = [asked.result() for asked in [threads.submit(ask) for _ in range(20)]]
    assert sorted(len(answer.granted) for answer in answers) == [0] * 19 + [1]
    assert sum(answer.elsewhere == {CUSTOMER.entity} for answer in answers) == 19


def test_a_lease_covers_its_entity_and_no_other(l2: L2Tier) -> None:
    """All groups of the customer are one load; the merchant is somebody else's matter."""
    _lease(l2)
    answer = l2.lease_many([CUSTOMER, SAME_ENTITY, MERCHANT], {}, POLICIES)
    assert set(answer.granted) == {MERCHANT.entity}
    assert answer.elsewhere == {CUSTOMER.entity}


def test_a_fill_under_a_lease_arrives_and_ends_it(l2: L2Tier, stats: KeptStats) -> None:
    assert l2.fill_many({CUSTOMER: entry(), SAME_ENTITY: negative()}, POLICIES, _lease(l2))
    assert l2.get_many([CUSTOMER, SAME_ENTITY], POLICIES) == {CUSTOMER: entry(), SAME_ENTITY: negative()}
    assert not stats.refused
    _lease(l2, entry())


def test_a_fill_without_a_lease_is_refused(l2: L2Tier, stats: KeptStats) -> None:
    """What was read without one may be out of date already."""
    l2.fill_many({CUSTOMER: entry(), MERCHANT: entry()}, POLICIES, _lease(l2))
    assert l2.get_many([CUSTOMER, MERCHANT], POLICIES) == {CUSTOMER: entry(), MERCHANT: MissReason.COLD}
    assert stats.refused == {(Tier.L2, "no_lease"): 1}


def test_an_invalidation_takes_the_lease_away(l2: L2Tier, stats: KeptStats) -> None:
    """Whoever reads the source before a change and fills after it is refused, whatever version it read."""
    lease = _lease(l2)
    l2.drop_many([CUSTOMER])
    assert l2.fill_many({CUSTOMER: entry(), SAME_ENTITY: entry()}, POLICIES, lease)
    assert l2.get_many([CUSTOMER, SAME_ENTITY], POLICIES) == dict.fromkeys((CUSTOMER, SAME_ENTITY), MissReason.COLD)
    assert stats.refused == {(Tier.L2, "lease"): 2}


def test_a_holder_that_comes_too_late_is_refused(l2: L2Tier, stats: KeptStats, redis_client: redis.Redis) -> None:
    """Its lease is void, another one has it: the late fill neither arrives nor ends the other lease."""
    late = _lease(l2)
    _expire(redis_client)
    other = _lease(l2)
    l2.fill_many({CUSTOMER: entry(9)}, POLICIES, late)
    l2.release(late)
    assert stats.refused == {(Tier.L2, "lease"): 1}
    assert _held(l2) is MissReason.COLD
    l2.fill_many({CUSTOMER: entry(1)}, POLICIES, other)
    assert _held(l2) == entry(1)


def test_the_lease_of_a_holder_that_died_ends_by_itself(l2: L2Tier, redis_client: redis.Redis) -> None:
    _lease(l2)
    assert 0 < redis_client.pttl(NAMES.lease) <= LEASE_MS
    assert _ask(l2).elsewhere == {CUSTOMER.entity}
    _expire(redis_client)
    _lease(l2)


def test_a_lease_that_was_not_needed_is_given_back(l2: L2Tier) -> None:
    l2.release(_lease(l2))
    _lease(l2)


@pytest.mark.parametrize("seen", [MissReason.COLD, MissReason.INVALIDATED, entry(1), negative()])
def test_what_changed_since_the_look_comes_instead_of_a_lease(l2: L2Tier, seen: Entry | MissReason) -> None:
    """All of the entity that was asked for: nobody loads what has just been filled."""
    l2.put_many({CUSTOMER: seen} if isinstance(seen, Entry) else {}, POLICIES)
    l2.put_many({CUSTOMER: entry(2)}, POLICIES)
    answer = l2.lease_many([CUSTOMER, SAME_ENTITY], {CUSTOMER: seen, SAME_ENTITY: MissReason.COLD}, POLICIES)
    assert answer.changed == {CUSTOMER: entry(2), SAME_ENTITY: MissReason.COLD}
    assert not (answer.granted or answer.elsewhere or answer.unavailable)


@pytest.mark.parametrize("seen", [entry(3, age_s=600.015625), negative(3)])
def test_what_is_as_it_was_seen_is_leased(l2: L2Tier, seen: Entry) -> None:
    """An expired copy, say; also when it is put once more as it was."""
    for _ in range(2):
        l2.put_many({CUSTOMER: seen}, POLICIES)
    _lease(l2, seen)


def test_a_copy_of_the_same_version_that_was_read_later_is_a_change(l2: L2Tier) -> None:
    """The source still has that version, but somebody has just asked it."""
    l2.put_many({CUSTOMER: entry(3, copy_age_s=30)}, POLICIES)
    assert _ask(l2, entry(3, copy_age_s=60)).changed == {CUSTOMER: entry(3, copy_age_s=30)}


def test_bytes_that_look_like_a_newer_record_keep_no_fill_out(l2: L2Tier, redis_client: redis.Redis) -> None:
    """A head with the largest version and nothing behind it: who may load removes it, and the fill arrives."""
    redis_client.hset(NAMES.record, CUSTOMER.group, b"\xff" * 8 + b"V" + b"\x00" * 20)
    seen = _held(l2)
    assert seen is MissReason.DECODE
    assert l2.fill_many({CUSTOMER: entry()}, POLICIES, _lease(l2, seen))
    assert _held(l2) == entry()


def test_a_refresh_leaves_the_copy_that_it_renews(l2: L2Tier) -> None:
    """It takes the lease whatever there is; until the fill the copy serves."""
    l2.put_many({CUSTOMER: entry()}, POLICIES)
    _lease(l2, MissReason.BYPASS)
    assert _held(l2) == entry()


@pytest.mark.parametrize("seen", [MissReason.DECODE, MissReason.SCHEMA, MissReason.BYPASS])
def test_what_is_no_entry_to_the_reader_cannot_have_changed(l2: L2Tier, seen: MissReason) -> None:
    l2.put_many({CUSTOMER: entry()}, POLICIES)
    _lease(l2, seen)


@pytest.mark.parametrize("seen", [MissReason.COLD, MissReason.INVALIDATED])
def test_a_tombstone_is_no_change(l2: L2Tier, seen: MissReason) -> None:
    """There is nothing to be had, whether the reader saw the tombstone or came before it."""
    l2.put_many({CUSTOMER: entry()}, POLICIES)
    l2.drop_many([CUSTOMER])
    _lease(l2, seen)


def test_a_write_beats_a_load_that_is_under_way(l2: L2Tier, stats: KeptStats) -> None:
    """It ends the lease, and the older value that was read comes too late; so does one with a lease of later."""
    lease = _lease(l2)
    l2.put_many({CUSTOMER: entry(5)}, POLICIES)
    l2.fill_many({CUSTOMER: entry(4)}, POLICIES, lease)
    l2.fill_many({CUSTOMER: entry(4)}, POLICIES, _lease(l2, entry(5)))
    assert _held(l2) == entry(5)
    assert stats.refused == {(Tier.L2, "lease"): 1, (Tier.L2, "newer"): 1}


def test_what_was_dropped_keeps_older_versions_out(l2: L2Tier, redis_client: redis.Redis) -> None:
    """A tombstone of 17 bytes knows the version; the same one, read again from the source, is let in."""
    l2.put_many({CUSTOMER: entry(2**53 + 1), SAME_ENTITY: entry(1)}, POLICIES)
    l2.drop_many([CUSTOMER])
    assert _held(l2) is MissReason.INVALIDATED
    assert len(redis_client.hget(NAMES.record, "profile") or b"") == IDENTITY_BYTES
    for put in (2**53, 1):
        l2.put_many({CUSTOMER: entry(put)}, POLICIES)
        assert _held(l2) is MissReason.INVALIDATED
    l2.fill_many({CUSTOMER: entry(2**53 + 1)}, POLICIES, _lease(l2, MissReason.INVALIDATED))
    assert _held(l2) == entry(2**53 + 1)
    assert l2.get_many([SAME_ENTITY], POLICIES) == {SAME_ENTITY: entry(1)}


def test_a_drop_leaves_no_trace_of_what_was_never_there_or_never_ours(l2: L2Tier, redis_client: redis.Redis) -> None:
    """Absent fields stay absent; bytes that are no record go."""
    redis_client.hset(NAMES.record, "risk", b"not a record, but longer than 17 bytes")
    assert l2.drop_many([CUSTOMER, SAME_ENTITY])
    assert not redis_client.exists(NAMES.record)


def test_a_dropped_entity_drops_twice(l2: L2Tier) -> None:
    """Delivering an invalidation again changes nothing."""
    l2.put_many({CUSTOMER: entry(5)}, POLICIES)
    for _ in range(2):
        assert l2.drop_many([CUSTOMER])
        assert _held(l2) is MissReason.INVALIDATED
    l2.put_many({CUSTOMER: entry(4)}, POLICIES)
    assert _held(l2) is MissReason.INVALIDATED


def test_a_foreign_value_under_an_entitys_name_is_replaced_by_the_fill(l2: L2Tier, redis_client: redis.Redis) -> None:
    """Whatever type it has; the lease can be had all the same."""
    redis_client.rpush(NAMES.record, "somebody", "else")
    assert _held(l2) is MissReason.DECODE
    assert l2.fill_many({CUSTOMER: entry()}, POLICIES, _lease(l2, MissReason.DECODE))
    assert _held(l2) == entry()


def test_a_foreign_value_under_a_leases_name_stops_nobody(
    l2: L2Tier, stats: KeptStats, redis_client: redis.Redis
) -> None:
    """Nobody gets the lease, nothing is raised; the next write or invalidation removes it."""
    redis_client.rpush(NAMES.lease, "somebody", "else")
    assert _ask(l2).elsewhere == {CUSTOMER.entity}
    token = {CUSTOMER.entity: LeaseToken(NAMES.record, NAMES.lease, b"token")}
    assert not l2.fill_many({CUSTOMER: entry()}, POLICIES, token)
    assert stats.refused == {(Tier.L2, "error"): 1}
    l2.release(token)
    l2.drop_many([CUSTOMER])
    _lease(l2)


def test_a_server_that_has_forgotten_the_scripts_is_taught_again(l2: L2Tier, redis_client: redis.Redis) -> None:
    """After a restart, say: each call is answered as if it had known them."""

    def forgotten() -> L2Tier:
        redis_client.script_flush()
        return l2

    for _ in range(2):
        lease = _lease(forgotten())
        assert forgotten().fill_many({CUSTOMER: entry()}, POLICIES, lease)
        assert _held(l2) == entry()
        l2.release(_lease(l2, entry()))
        forgotten().release(_lease(l2, entry()))
        _lease(l2, entry())
        assert forgotten().drop_many([CUSTOMER])
        assert _held(l2) is MissReason.INVALIDATED
        redis_client.flushdb()


def _expire(client: redis.Redis) -> None:
    client.pexpire(NAMES.lease, 1)
    until(lambda: not client.exists(NAMES.lease))
