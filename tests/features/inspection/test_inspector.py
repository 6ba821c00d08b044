"""The inspector on real servers: what it finds, what it lets pass, what it repairs."""

import json
import os
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, InterfaceError, connection
from django.utils import timezone

from features.inspection import results
from features.inspection.copies import TierAway, Tiers
from features.inspection.inspector import SECOND_LOOK_AFTER_S, Inspector
from features.inspection.run import inspect
from features.inspection.verdicts import Cause
from features.inspection.wiring import make_inspector
from features.models import InspectionCount, InspectionCursor, InspectionFinding, PolicyRevision, TtlPolicy
from features.policies import policies_in_force
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.inquiry import Answer, HeldCopy, Question, list_of, pack_answer
from mlserve.cache.keys import names_of
from mlserve.cache.outcome import Tier
from mlserve.cache.wiring import engine
from mlserve.observability import metrics
from tests.features.inspection.conftest import GROUP, Bench
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until


def _checked(inspector: Inspector) -> dict[tuple[int, str], int]:
    return {place: count.checked for place, count in inspector.tally.counts.of.items()}


def _causes(inspector: Inspector, tier: str = "l2") -> list[Cause]:
    return [found.cause for found in inspector.tally.findings if found.tier == tier]


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
    assert _checked(inspector) == {(1, "all"): 1, (1, "l2"): 1, (1, "l1"): 1}
    assert any(str(os.getpid()) in process for process in inspector.tally.processes)
    proven.grow_old(10)
    inspector.look()
    inspector.look()
    proven.grow_old(300)
    inspector.look()
    assert {horizon_s: checked for (horizon_s, tier), checked in _checked(inspector).items() if tier == "all"} == {
        1: 1,
        10: 1,
        300: 1,
    }
    assert inspector.tally.inconsistent == 0 and not inspector.tally.findings


def test_a_copy_that_nobody_vouches_for_is_no_mistake(bench: Bench) -> None:
    """Without a relay an old copy of a proven group is there, and not served."""
    bench.world.edit_policy(GROUP, freshness="proven")
    old = bench.write(1)
    version = bench.write(2)
    bench.plant(old, 1)
    inspector = bench.look_after(2)
    assert version > old
    assert _checked(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_by_age_alone_an_old_copy_is_within_its_contract(bench: Bench) -> None:
    """It is not inconsistent and not repaired; how long its writes have been missing is told."""
    old = bench.write(1)
    bench.write(2)
    bench.plant(old, 1)
    before = _sample(metrics.STALENESS, namespace=GROUP)
    inspector = bench.look_after(20)
    assert _checked(inspector)[10, "all"] == 1 and inspector.tally.inconsistent == 0
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
    assert _checked(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_a_row_that_has_moved_on_says_nothing_of_its_old_versions(bench: Bench) -> None:
    """The copy has the write that is looked at, and the row another one since: nobody can compare them."""
    version = bench.write(1)
    inspector = bench.inspector
    inspector.look()
    bench.grow_old(2)
    bench.write(2)
    bench.plant(version, 7)
    inspector.look()
    assert _checked(inspector)[1, "all"] == 1 and inspector.tally.inconsistent == 0


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
    assert _causes(inspector) == [Cause.WRONG_BYTES]
    assert proven.client.hget(proven.record(), proven.key.group) is None
    assert proven.read().values == (1.0,) * 6


def test_a_version_that_postgres_never_gave_keeps_nothing_out(proven: Bench) -> None:
    """Left with a tombstone of that version, L2 would refuse every true value."""
    version = proven.write(1)
    proven.told(version)
    proven.plant(2**62, 7)
    inspector = proven.look_after(2)
    assert _causes(inspector) == [Cause.UNKNOWN]
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
    assert _causes(inspector) == [Cause.LATE]
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
    assert _causes(inspector, "l1") == [Cause.WRONG_BYTES]
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


# --- who is away ---


@pytest.mark.parametrize("use_l1", [True, False])
def test_without_the_cache_nothing_is_concluded(proven: Bench, valkey_cache: ServerHandle, use_l1: bool) -> None:
    """The look says so, counts nothing, and is made again when the cache is back; also if only L2 is to be asked."""
    proven.world.edit_policy(GROUP, use_l1=use_l1)
    proven.write(1)
    inspector = proven.inspector
    inspector.look()
    proven.grow_old(2)
    reached = InspectionCursor.objects.get(horizon_s=1).snapshot
    valkey_cache.kill()
    with pytest.raises(TierAway):
        inspector.look()
    inspector.run(0)
    assert inspector.tally.trouble.startswith("cache: ")
    assert InspectionCursor.objects.get(horizon_s=1).snapshot == reached
    assert not InspectionCount.objects.exists()
    valkey_cache.start()
    until(lambda: _looks_again(inspector))
    assert _checked(inspector)[1, "all"] == 1


def test_without_postgres_nothing_is_concluded(proven: Bench, postgres: ServerHandle) -> None:
    """The look says so, and is made again when Postgres is back."""
    proven.write(1)
    proven.settled()
    proven.read()
    inspector = proven.inspector
    inspector.look()
    proven.grow_old(2)
    proven.session.close()
    connection.close()
    postgres.kill()
    with pytest.raises((DatabaseError, InterfaceError)):
        inspector.look()
    inspector.run(0)
    assert inspector.tally.trouble.startswith("Postgres: ") and not inspector.tally.counts.of
    postgres.start()
    until(lambda: _looks_again(inspector))
    assert _checked(inspector)[1, "all"] == 1


def test_a_wrong_copy_counts_although_the_cache_hangs_when_it_is_deleted(
    proven: Bench, valkey_cache: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was deleted is unknown then. Nothing is concluded, and the next look counts it in either case."""
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    inspector = proven.inspector
    inspector.look()
    proven.grow_old(2)
    delete = inspector._repair.delete

    def hangs(keys: Any) -> None:
        valkey_cache.freeze()
        delete(keys)

    monkeypatch.setattr(inspector._repair, "delete", hangs)
    with pytest.raises(TierAway):
        inspector.look()
    valkey_cache.thaw()
    assert not InspectionCount.objects.exists()
    monkeypatch.undo()
    until(lambda: _looks_again(inspector))
    assert _causes(inspector) == [Cause.WRONG_BYTES]
    assert InspectionCount.objects.get(horizon_s=1, tier="all").wrong_bytes == 1
    assert inspector.tally.switched_off == [GROUP]
    assert proven.client.hget(proven.record(), proven.key.group) is None


def test_a_wrong_copy_counts_although_postgres_goes_when_it_was_deleted(
    proven: Bench, postgres: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is gone when the lines are looked at again."""
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    inspector = proven.inspector
    inspector.look()
    proven.grow_old(2)
    delete = inspector._repair.delete

    def and_then_postgres_goes(keys: Any) -> None:
        delete(keys)
        proven.session.close()
        postgres.kill()

    monkeypatch.setattr(inspector._repair, "delete", and_then_postgres_goes)
    with pytest.raises((DatabaseError, InterfaceError)):
        inspector.look()
    postgres.start()
    monkeypatch.undo()
    until(lambda: _looks_again(inspector))
    assert InspectionCount.objects.get(horizon_s=1, tier="all").wrong_bytes == 1
    assert inspector.tally.switched_off == [GROUP]


def _looks_again(inspector: Inspector) -> bool:
    inspector.run(0)
    return not inspector.tally.trouble


def test_two_inspectors_count_nothing_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever concludes second finds the cursors moved and drops what it has."""
    bench.write(1)
    first, second = bench.inspector, bench.inspector
    first.look()
    bench.grow_old(2)
    look = first._tiers.look

    def overtaken(*args: Any) -> Any:
        second.look()
        return look(*args)

    monkeypatch.setattr(first._tiers, "look", overtaken)
    first.look()
    assert (first.tally.races, first.tally.looks) == (1, 1)
    assert _checked(first) == {} and _checked(second)[1, "all"] == 1
    assert InspectionCount.objects.get(horizon_s=1, tier="all").checked == 1


# --- what lies in the way ---


@pytest.mark.parametrize(
    "foreign", [b"", b"\0" * 17, b"\xff" * 400, b"\xff" * 8 + b"V" + b"\xff" * 20, b"x" * 1_100_000]
)
def test_bytes_that_are_no_record_are_no_copy(bench: Bench, foreign: bytes) -> None:
    """Whoever reads them loads from Postgres."""
    bench.write(1)
    bench.client.hset(bench.record(), bench.key.group, foreign)
    inspector = bench.look_after(2)
    assert _checked(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_a_value_of_another_type_is_no_copy(bench: Bench) -> None:
    """Under the name of an entity's hash."""
    bench.write(1)
    bench.client.set(bench.record(), b"not a hash")
    inspector = bench.look_after(2)
    assert _checked(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_journal_lines_that_nobody_wrote_are_lines_like_others(bench: Bench) -> None:
    """Groups that nobody knows, versions below zero, ids without a row."""
    for group, version in (("no_such_group", 1), (GROUP, -5), (GROUP, 2**62)):
        bench.session.execute(
            'INSERT INTO features_journal ("group", entity_ids, versions) VALUES (%s, ARRAY[%s], ARRAY[%s]::bigint[])',
            (group, f"{bench.key.id}-{version}", version),
        )
    inspector = bench.look_after(2)
    assert _checked(inspector)[1, "all"] == 2 and inspector.tally.inconsistent == 0


def test_answers_that_no_process_gave_are_left_out(proven: Bench) -> None:
    """Foreign bytes, somebody else's keys and moments that are none."""
    proven.write(1)
    proven.settled()
    bus = engine().bus
    other = proven.other_key()

    class Flooded:
        def ask(self, question: Question) -> bool:
            name = list_of(names_of(proven.key.kind, proven.key.id, 1).partition, question.id)
            copy = HeldCopy("merchant", other.id, GROUP, 1, 1.0, 1.0, 1.0, False, b"")
            endless = HeldCopy("merchant", proven.key.id, GROUP, 1, 1.0, 1.0, float("nan"), False, b"")
            proven.client.rpush(
                name,
                b"\xff" * 100,
                pack_answer(Answer("p", 1.0, [copy])),
                pack_answer(Answer("p", 1.0, [endless])),
                pack_answer(Answer("p", float("inf"), [])),
            )
            return bus.ask(question)

        def collect(self, question: Question) -> Any:
            return bus.collect(question)

    tiers = Tiers(l2=[], bus=Flooded(), clock=SystemClock())
    looked = tiers.look([proven.key], policies_in_force().policies)
    assert looked.copies == {proven.key: []}
    assert "p" in looked.processes and len(looked.processes) == 2


# --- runs ---


def _old_finding(at: Any, entity_id: str = "x") -> None:
    InspectionFinding.objects.create(
        at=at,
        group=GROUP,
        entity_id=entity_id,
        tier="l2",
        horizon_s=1,
        age_s=1,
        cause="late",
        held_version=1,
        written_version=2,
        switched_off=False,
    )


def test_a_run_looks_until_its_time_is_over(bench: Bench) -> None:
    """Another look every half second."""
    inspector = bench.inspector
    inspector.run(0.6)
    assert inspector.tally.looks == 2


def test_beats_run_prunes_and_looks(bench: Bench) -> None:
    """Findings of long ago go; the lines that are due are counted."""
    _old_finding("2020-01-01T00:00:00Z")
    bench.write(1)
    bench.inspector.look()
    bench.grow_old(2)
    inspect(now=timezone.now(), seconds=0)
    assert not InspectionFinding.objects.exists()
    assert InspectionCount.objects.get(horizon_s=1, tier="all").checked == 1


def test_beats_run_says_that_postgres_is_away(
    bench: Bench, postgres: ServerHandle, caplog: pytest.LogCaptureFixture
) -> None:
    """And ends; the next one comes in seconds."""
    bench.session.close()
    connection.close()
    postgres.kill()
    inspect(now=timezone.now(), seconds=0)
    assert "inspection_waits" in caplog.text


def test_findings_do_not_fill_the_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of them stay."""
    monkeypatch.setattr(results, "MOST_FINDINGS", 3)
    now = timezone.now()
    for number in range(5):
        _old_finding(now, str(number))
    results.prune(now=now)
    assert list(InspectionFinding.objects.values_list("entity_id", flat=True)) == ["4", "3", "2"]


# --- the command ---


def test_the_command_tells_what_it_has_seen(bench: Bench) -> None:
    """As one JSON object, or in words; 0 if nothing was wrong."""
    bench.write(1)
    bench.inspector.look()
    bench.grow_old(2)
    out = StringIO()
    call_command("inspect", "--seconds", "1", "--json", stdout=out)
    told = json.loads(out.getvalue())
    (writes,) = [check for check in told["checks"] if (check["horizon_s"], check["tier"]) == (1, "all")]
    assert writes["checked"] >= 1 and writes["inconsistent"] == {}
    assert (told["trouble"], told["findings"], told["switched_off"]) == ("", [], [])
    out = StringIO()
    call_command("inspect", "--seconds", "1", stdout=out)
    assert "nothing to look at" in out.getvalue() or "checked" in out.getvalue()


def test_the_command_fails_where_something_was_wrong(proven: Bench) -> None:
    """And names it."""
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    proven.inspector.look()
    proven.grow_old(2)
    out = StringIO()
    with pytest.raises(CommandError, match="1 writes were missing or wrong"):
        call_command("inspect", "--seconds", "1", stdout=out)
    assert f"wrong_bytes: {GROUP} of {proven.key.id} in l2" in out.getvalue()
    assert f"{GROUP}: L1 and L2 are off" in out.getvalue()


def test_the_command_says_who_is_away(bench: Bench, valkey_cache: ServerHandle) -> None:
    """If something is due and cannot be looked at."""
    bench.write(1)
    bench.inspector.look()
    bench.grow_old(2)
    valkey_cache.kill()
    with pytest.raises(CommandError, match="the last look was not concluded"):
        call_command("inspect", "--seconds", "1", stdout=StringIO())


@pytest.mark.parametrize("seconds", ["-1", "x", "999999999"])
def test_a_wrong_number_of_seconds_is_refused(seconds: str) -> None:
    """With the range."""
    with pytest.raises(CommandError, match="whole number from 0"):
        call_command("inspect", "--seconds", seconds)
