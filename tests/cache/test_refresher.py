"""The thread that reloads fresh copies before they expire, and what readers see meanwhile."""

from collections.abc import Mapping, Sequence

import pytest

from mlserve.cache import refresher as refresher_module
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.loading import SourceUnavailable
from mlserve.cache.outcome import MissReason, Tier
from tests.cache.doubles import policy
from tests.cache.worlds import PATIENCE_S, World

POLICIES = {"group": policy(), "no_l1": policy("no_l1", use_l1=False), "no_l2": policy("no_l2", use_l2=False)}
KEY, NO_L1, NO_L2 = (Key("customer", "a", group) for group in POLICIES)
LIMIT_S = POLICIES["group"].fresh_for_s


def _world() -> World:
    """Its source is held up until a test opens the gate; keys live for the whole of their limit."""
    world = World(POLICIES, life_share=lambda key: 1.0)
    world.gate.clear()
    return world


@pytest.fixture
def world() -> World:
    return _world()


def _nearly_expired(world: World, key: Key = KEY) -> Entry:
    """In both tiers, so near to its end that every reader's coin says "now"; the source has something newer."""
    row = world.source.write(key)
    held = Entry(row.version, row.as_of, row.written_at, row.values, cost_s=1e6)
    world.l1.held[key] = world.memory.held[key] = held
    world.clock.advance(LIMIT_S - 1)
    world.source.write(key)
    return held


def test_readers_are_served_the_old_copy_while_one_refresh_is_under_way(world: World) -> None:
    """It is fresh and nobody waits; afterwards both tiers have the new one."""
    held = _nearly_expired(world)
    for _ in range(10):
        outcome = world.read(KEY).outcomes[KEY]
        assert (outcome.version, outcome.tier, outcome.stale) == (held.version, Tier.L1, False)
        assert world.reading.wait(PATIENCE_S)
    world.gate.set()
    world.refresher.flush()
    assert world.source.asked == [[KEY]]
    assert {world.l1.held[KEY].version, world.memory.held[KEY].version} == {held.version + 1}
    assert world.read(KEY).outcomes[KEY].version == held.version + 1
    assert world.stats.events["refreshed_early"] == 1


def test_a_refresh_takes_the_lease(world: World) -> None:
    """Whoever misses meanwhile waits for it; it is given back with the fill."""
    _nearly_expired(world)
    world.read(KEY)
    assert world.reading.wait(PATIENCE_S)
    assert set(world.memory.leases) == {KEY.entity}
    world.gate.set()
    world.refresher.flush()
    assert world.memory.leases == {}


def test_a_key_that_another_process_loads_is_not_refreshed(world: World) -> None:
    _nearly_expired(world)
    world.gate.set()
    world.memory.take_lease(KEY.entity)
    world.read(KEY)
    world.refresher.flush()
    assert world.source.asked == []
    assert world.stats.events["refreshed_early"] == 0


def test_without_l2_nobody_refreshes(world: World) -> None:
    """All processes would, each for itself: the source is spared, the copy serves until its end."""
    _nearly_expired(world)
    world.gate.set()
    world.memory.outage = MissReason.TIMEOUT
    world.read(KEY)
    world.refresher.flush()
    assert world.source.asked == []


def test_an_invalidation_during_a_refresh_keeps_its_result_out_of_l2(world: World) -> None:
    """It may have read the source before the change."""
    _nearly_expired(world)
    world.read(KEY)
    assert world.reading.wait(PATIENCE_S)
    world.memory.drop_many([KEY])
    world.gate.set()
    world.refresher.flush()
    assert KEY not in world.memory.held


def test_a_refresh_that_fails_is_counted_and_is_not_the_last(world: World) -> None:
    """No lease is left, the copy stays, and the next reader may try again."""
    held = _nearly_expired(world)
    world.gate.set()
    world.source.away = True
    world.read(KEY)
    world.refresher.flush()
    assert world.stats.source_errors == {"refresh": 1}
    assert world.memory.leases == {}
    assert world.l1.held[KEY] is held
    world.source.away = False
    world.read(KEY)
    world.refresher.flush()
    assert world.l1.held[KEY].version == held.version + 1


@pytest.mark.parametrize(("key", "tier"), [(NO_L1, Tier.L2), (NO_L2, Tier.L1)])
def test_a_policy_decides_where_a_refreshed_copy_goes(world: World, key: Key, tier: Tier) -> None:
    """A tier that is bypassed gets none, nor is its lease asked for."""
    held = _nearly_expired(world, key)
    this, other = (world.l1, world.memory) if tier is Tier.L1 else (world.memory, world.l1)
    other.held.clear()
    world.gate.set()
    world.read(key)
    world.refresher.flush()
    assert this.held[key].version == held.version + 1
    assert other.held == {}


def test_a_dry_run_refreshes_nothing(world: World) -> None:
    _nearly_expired(world)
    world.gate.set()
    world.read(KEY, leave_no_trace=True)
    world.refresher.flush()
    assert world.source.asked == []


def test_refreshes_that_find_the_queue_full_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a miss later; nobody waits for a place, and the key may be asked for again."""
    monkeypatch.setattr(refresher_module, "QUEUE_LENGTH", 2)
    world = _world()
    keys = [Key("customer", str(number), "no_l2") for number in range(5)]
    world.refresher.refresh(keys[:1], POLICIES, world.load)
    assert world.reading.wait(PATIENCE_S)
    world.refresher.refresh(keys, POLICIES, world.load)
    world.gate.set()
    world.refresher.flush()
    assert world.source.asked == [[key] for key in keys[:3]]
    world.refresher.refresh(keys[3:], POLICIES, world.load)
    world.refresher.flush()
    assert world.source.asked[3:] == [[key] for key in keys[3:]]


def test_a_measured_cost_decides_when_it_is_refreshed_next(world: World) -> None:
    """The new copy has the cost of the read that made it."""
    _nearly_expired(world)
    world.gate.set()
    world.source.reading_s = 0.25
    world.read(KEY)
    world.refresher.flush()
    assert world.l1.held[KEY].cost_s == world.memory.held[KEY].cost_s == 0.25


def test_a_refresher_survives_what_nobody_foresaw(world: World) -> None:
    """One bad refresh does not end all later ones."""

    def broken(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        raise ZeroDivisionError

    def away(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        raise SourceUnavailable("database")

    world.gate.set()
    for loader in (broken, away, world.load):
        world.refresher.refresh([KEY], POLICIES, loader)
        world.refresher.flush()
    assert world.stats.source_errors == {"refresh": 2}
    assert KEY in world.l1.held
