"""The inspector on real servers: what it finds, what it lets pass, what it repairs."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from features.inspection.inspector import SECOND_LOOK_AFTER_S
from features.inspection.verdicts import Cause
from features.inspection.wiring import make_inspector
from features.models import InspectionCount, InspectionFinding, PolicyRevision, TtlPolicy
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.wiring import engine
from mlserve.observability import metrics
from tests.features.inspection.conftest import GROUP, Bench
from tests.features.inspection.seen import causes_of, checked_by
from tests.fixtures.waiting import until


def _sample(metric: Any, **labels: str) -> float:
    """The value of a counter, or how often a histogram has observed something."""
    child = metric.labels(**labels)
    return float(sum(bucket.get() for bucket in child._buckets) if hasattr(child, "_buckets") else child._value.get())


class Interrupted(SystemClock):
    """Before the second look, something happens."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens

    def sleep(self, seconds: float, /) -> None:  # type: ignore[override]
        if seconds == SECOND_LOOK_AFTER_S:
            self._happens()
        else:
            SystemClock.sleep(seconds)


# --- what is right ---


def test_a_healthy_cache_is_looked_at_and_found_right(proven: Bench) -> None:
    """In L2, and in every process that answers; at each horizon once."""
    proven.write(1)
    proven.settled()
    assert proven.read().values == (1.0,) * 6
    inspector = proven.look_after(2)
    assert checked_by(inspector) == {(1, "all"): 1, (1, "l2"): 1, (1, "l1"): 1}
    assert any(str(os.getpid()) in process for process in inspector.tally.processes)
    proven.grow_old(10)
    inspector.look()
    inspector.look()
    proven.grow_old(300)
    inspector.look()
    assert {horizon_s: checked for (horizon_s, tier), checked in checked_by(inspector).items() if tier == "all"} == {
        1: 1,
        10: 1,
        300: 1,
    }
    assert inspector.tally.inconsistent == 0 and not inspector.tally.findings


def test_a_row_without_a_value_that_was_added_since_is_no_mistake(bench: Bench) -> None:
    """As a worker of an earlier release writes embeddings, without their build's number: the copy has its default."""
    key = Key("merchant", bench.key.id, "merchant_embedding")
    bench.session.execute(
        """INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES (%s, %s, %s, now())""",
        (key.group, key.id, [0.5] * 16),
    )
    assert bench.read(key).values == (*(0.5,) * 16, 0.0)
    inspector = bench.look_after(2)
    assert checked_by(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0
    assert bench.read(key).tier is Tier.L1


def test_a_copy_that_nobody_vouches_for_is_no_mistake(bench: Bench) -> None:
    """Without a relay an old copy of a proven group is there, and not served."""
    bench.world.edit_policy(GROUP, freshness="proven")
    old = bench.write(1)
    version = bench.write(2)
    bench.plant(old, 1)
    inspector = bench.look_after(2)
    assert version > old
    assert checked_by(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_by_age_alone_an_old_copy_is_within_its_contract(bench: Bench) -> None:
    """It is not inconsistent and not repaired; how long its writes have been missing is told."""
    old = bench.write(1)
    bench.write(2)
    bench.plant(old, 1)
    before = _sample(metrics.STALENESS, namespace=GROUP)
    inspector = bench.look_after(20)
    assert checked_by(inspector)[10, "all"] == 1 and inspector.tally.inconsistent == 0
    held = bench.in_l2()
    assert isinstance(held, Entry) and held.version == old
    assert _sample(metrics.STALENESS, namespace=GROUP) == before + 1


def test_a_purged_row_may_be_said_not_to_exist(proven: Bench) -> None:
    """Its copy has version 0, which is less than the purge's; it is what Postgres says."""
    proven.write(1)
    proven.session.execute("SET mlserve.purge = on")
    proven.session.execute("DELETE FROM features_featurerow WHERE entity_id = %s", (proven.key.id,))
    proven.settled()
    proven.client.hdel(proven.record(), proven.key.group)  # the tombstone has expired
    assert proven.read().values is None
    held = proven.in_l2()
    assert isinstance(held, Entry) and held.version == 0
    inspector = proven.look_after(2)
    assert checked_by(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_a_row_that_has_moved_on_says_nothing_of_its_old_versions(bench: Bench) -> None:
    """The copy has the write that is looked at, and the row another one since: nobody can compare them."""
    version = bench.write(1)
    inspector = bench.inspector
    inspector.look()
    bench.grow_old(2)
    bench.write(2)
    bench.plant(version, 7)
    inspector.look()
    assert checked_by(inspector)[1, "all"] == 1 and inspector.tally.inconsistent == 0


# --- what is wrong ---


def test_a_lost_invalidation_is_found_and_repaired(proven: Bench) -> None:
    """An old record with the right epoch: nobody flags it, and the watermark vouches for it."""
    old = proven.write(1)
    version = proven.write(2)
    proven.told(version)
    proven.plant(old, 1)
    inspector = proven.look_after(2)
    (finding,) = [found for found in inspector.tally.findings if found.tier == "l2"]
    assert (finding.cause, finding.held, finding.written) == (Cause.LOST_INVALIDATION, old, version)
    assert proven.client.hget(proven.record(), proven.key.group) is None
    assert proven.read().version == version


@pytest.mark.parametrize("freshness", ["proven", "ttl"])
def test_wrong_bytes_under_the_newest_version_are_found_and_repaired(proven: Bench, freshness: str) -> None:
    """Although the copy is not older than anything; by age alone too."""
    proven.world.edit_policy(GROUP, freshness=freshness)
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    inspector = proven.look_after(2)
    assert causes_of(inspector) == [Cause.WRONG_BYTES]
    assert proven.client.hget(proven.record(), proven.key.group) is None
    assert proven.read().values == (1.0,) * 6


def test_a_version_that_postgres_never_gave_keeps_nothing_out(proven: Bench) -> None:
    """Left with a tombstone of that version, L2 would refuse every true value."""
    version = proven.write(1)
    proven.told(version)
    proven.plant(2**62, 7)
    inspector = proven.look_after(2)
    assert causes_of(inspector) == [Cause.UNKNOWN]
    assert proven.read().version == version
    held = proven.in_l2()
    assert isinstance(held, Entry) and held.version == version
    assert TtlPolicy.objects.get(pk=GROUP).use_l2, "that alone takes no group out of the cache"


def test_a_copy_that_goes_by_itself_was_late(proven: Bench) -> None:
    """It counts, but the group stays in the cache."""
    old = proven.write(1)
    version = proven.write(2)
    proven.told(version)
    proven.plant(old, 1)
    clock = Interrupted(lambda: proven.client.hdel(proven.record(), proven.key.group))
    inspector = proven.look_after(2, make_inspector(clock=clock))
    assert causes_of(inspector) == [Cause.LATE]
    assert (inspector.tally.inconsistent, inspector.tally.repaired, inspector.tally.switched_off) == (1, 0, [])
    assert TtlPolicy.objects.get(pk=GROUP).use_l2


def test_a_wrong_copy_in_a_process_is_found_and_repaired(proven: Bench) -> None:
    """It is asked over the bus, and told over the bus."""
    version = proven.write(1)
    proven.settled()
    now = engine().clock.now()
    until(lambda: engine().chain.vouched_of(proven.key) > now)  # it follows the stream: what comes now stays
    engine().l1.store.put(proven.key, Entry(version, now, now, (7.0,) * 6, 0.0, now))
    inspector = proven.look_after(2)
    assert causes_of(inspector, "l1") == [Cause.WRONG_BYTES]
    (finding,) = inspector.tally.findings
    assert finding.place in inspector.tally.processes
    until(lambda: proven.in_l1() is None)


def test_an_old_copy_in_a_process_is_found(proven: Bench) -> None:
    """One that the stream vouches for although it never named the write."""
    old = proven.write(1)
    version = proven.write(2)
    proven.settled()
    now = engine().clock.now()
    until(lambda: engine().chain.vouched_of(proven.key) > now)
    engine().l1.store.put(proven.key, Entry(old, now, now, (1.0,) * 6, 0.0, now))
    inspector = proven.look_after(2)
    (finding,) = [found for found in inspector.tally.findings if found.tier is Tier.L1]
    assert (finding.cause, finding.held, finding.written) == (Cause.LOST_INVALIDATION, old, version)


# --- what follows from it ---


def test_a_wrong_copy_takes_its_group_out_of_the_cache(proven: Bench) -> None:
    """Until an operator allows it again. The policy's history, the finding and the counts tell."""
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    inspector = proven.look_after(2)
    assert inspector.tally.switched_off == [GROUP]
    policy = TtlPolicy.objects.get(pk=GROUP)
    assert (policy.use_l1, policy.use_l2) == (False, False)
    revision = PolicyRevision.objects.filter(policy=GROUP).first()
    assert revision is not None and revision.before is not None
    assert (revision.before["use_l2"], revision.after["use_l2"]) == (True, False)
    finding = InspectionFinding.objects.get()
    assert (finding.cause, finding.entity_id, finding.switched_off) == ("wrong_bytes", proven.key.id, True)
    counted = InspectionCount.objects.get(horizon_s=1, tier="all")
    assert (counted.checked, counted.wrong_bytes, counted.late) == (1, 1, 0)
    until(lambda: proven.read().tier is Tier.L3)
    proven.world.edit_policy(GROUP, use_l1=True, use_l2=True)
    proven.read()
    assert proven.read().tier is not Tier.L3


def test_a_setting_leaves_the_group_in_the_cache(proven: Bench, settings: Any) -> None:
    """The copies are repaired all the same."""
    settings.INSPECTION_SWITCHES_OFF = False
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    inspector = proven.look_after(2)
    assert inspector.tally.switched_off == [] and inspector.tally.repaired == 1
    assert TtlPolicy.objects.get(pk=GROUP).use_l2
    assert proven.client.hget(proven.record(), proven.key.group) is None


def test_figures_are_told_to_prometheus(proven: Bench, settings: Any) -> None:
    """By tier, horizon and cause."""
    settings.INSPECTION_SWITCHES_OFF = False
    checked = _sample(metrics.CONSISTENCY_CHECKED, tier="l2", horizon="1")
    wrong = _sample(metrics.INCONSISTENT, tier="l2", horizon="1", cause="wrong_bytes")
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    proven.look_after(2)
    assert _sample(metrics.CONSISTENCY_CHECKED, tier="l2", horizon="1") == checked + 1
    assert _sample(metrics.INCONSISTENT, tier="l2", horizon="1", cause="wrong_bytes") == wrong + 1
