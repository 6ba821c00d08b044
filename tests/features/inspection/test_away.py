"""The inspector while the cache or Postgres is away, and beside another inspector."""

from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, connection

from features.inspection.copies import TierAway
from features.inspection.verdicts import Cause
from features.models import InspectionCount, InspectionCursor
from tests.features.inspection.conftest import GROUP, Bench
from tests.features.inspection.seen import causes_of, checked_by, looks_again
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until


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
    until(lambda: looks_again(inspector))
    assert checked_by(inspector)[1, "all"] == 1


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
    until(lambda: looks_again(inspector))
    assert checked_by(inspector)[1, "all"] == 1


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
    until(lambda: looks_again(inspector))
    assert causes_of(inspector) == [Cause.WRONG_BYTES]
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
    until(lambda: looks_again(inspector))
    assert InspectionCount.objects.get(horizon_s=1, tier="all").wrong_bytes == 1
    assert inspector.tally.switched_off == [GROUP]


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
    assert checked_by(first) == {} and checked_by(second)[1, "all"] == 1
    assert InspectionCount.objects.get(horizon_s=1, tier="all").checked == 1
