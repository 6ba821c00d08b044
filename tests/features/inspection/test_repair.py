"""Deleting wrong copies: everywhere they may lie, whatever they are, and so that nobody brings them back."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from features.inspection.copies import TierAway
from features.inspection.repair import Repair, switch_off
from features.inspection.verdicts import Cause
from features.models import PolicyRevision, TtlPolicy
from features.policies import policies_in_force
from mlserve.cache.breaker import Breaker
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.l2_redis import REPLICAS
from mlserve.cache.tiers.wire import Command
from mlserve.cache.wiring import engine
from tests.features.inspection.conftest import GROUP, Bench
from tests.fixtures.servers import ServerHandle


class _Answering:
    """A node that answers: records and stream of one entity may lie on different ones."""

    breakers: Mapping[str, Breaker] = {}

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        return [1] * len(commands)

    def probe(self) -> None: ...


class _Told:
    def withdraw(self, keys: Sequence[Key]) -> bool:
        return True


def _repair(partitions: int = 1) -> Repair:
    cache = engine()
    return Repair(wire=cache.wire, bus=cache.bus, partitions=partitions)


def test_whoever_was_about_to_fill_must_not(bench: Bench) -> None:
    """It may have read what is deleted now; its lease is gone."""
    cache, policies = engine(), policies_in_force().policies
    now = cache.clock.now()
    leases = cache.l2.lease_many([bench.key], {bench.key: MissReason.COLD}, policies).granted
    assert bench.key.entity in leases
    _repair().delete([bench.key])
    cache.l2.fill_many({bench.key: Entry(1, now, now, (1.0,) * 6)}, policies, leases)
    assert bench.in_l2() is MissReason.COLD


def test_other_groups_of_the_entity_stay(bench: Bench) -> None:
    """A field goes, not the hash."""
    bench.client.hset(bench.record(), mapping={GROUP: b"x", "merchant_profile": b"y"})
    _repair().delete([bench.key])
    assert bench.client.hkeys(bench.record()) == [b"merchant_profile"]


def test_copies_of_a_hot_entity_go_as_well(bench: Bench) -> None:
    """Where L2 has partitions, one entity may lie in several of them."""
    records = [names_of(*bench.key.entity, 16, replica).record for replica in range(REPLICAS)]
    assert len(set(records)) == REPLICAS
    for record in records:
        bench.client.hset(record, GROUP, b"x")
    _repair(partitions=16).delete([bench.key])
    assert bench.client.exists(*records) == 0


def test_a_cache_that_does_not_answer_is_told(bench: Bench, valkey_cache: ServerHandle) -> None:
    """Nobody takes copies for deleted that may be there."""
    valkey_cache.kill()
    with pytest.raises(TierAway, match="processes"):
        Repair(wire=_Answering(), bus=engine().bus, partitions=1).delete([bench.key])
    with pytest.raises(TierAway, match="deleted"):
        Repair(wire=engine().wire, bus=_Told(), partitions=1).delete([bench.key])


def test_a_group_is_switched_off_once(bench: Bench) -> None:
    """One edit of the policy, however many copies were wrong."""
    now = TtlPolicy.objects.get(pk=GROUP).updated_at
    before = PolicyRevision.objects.filter(policy=GROUP).count()
    assert switch_off(GROUP, cause=Cause.WRONG_BYTES, now=now)
    assert not switch_off(GROUP, cause=Cause.WRONG_BYTES, now=now)
    assert PolicyRevision.objects.filter(policy=GROUP).count() == before + 1
    assert not switch_off("no_such_group", cause=Cause.WRONG_BYTES, now=now)
