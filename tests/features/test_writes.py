"""Copies follow what is committed: through, around, and what a build does with them."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
import redis

from features import policies, writes
from features.definitions import GROUPS, MODEL_GROUPS
from features.models import FeatureRow
from features.policies import policies_in_force
from features.refresh import build
from features.writes import Invalidated, write_around, write_leases, write_through
from mlserve.cache import wiring
from mlserve.cache.entry import Entry
from mlserve.cache.hotkeys import HotKeyCounter
from mlserve.cache.keys import Key
from mlserve.cache.wiring import Engine, engine
from tests.features.ledgers import START, payment, record
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def cache(redis_client: redis.Redis, transactional_db: None) -> Iterator[Engine]:
    """An engine without copies, on an empty L2."""
    _forget()
    yield engine()
    _forget()


def _forget() -> None:
    policies.forget()
    wiring.reset()


def _merchants(*ids: str, group: str = "merchant_profile") -> list[Key]:
    return [Key("merchant", entity_id, group) for entity_id in ids]


def _store(keys: Sequence[Key]) -> None:
    now = engine().clock.now()
    numbers = {key: (1.0,) * len(GROUPS[key.group].values) for key in keys}
    write_through({key: Entry(1, now, now, values) for key, values in numbers.items()}, write_leases(keys))
    assert _held(keys) == set(keys)


def _held(keys: Sequence[Key]) -> set[Key]:
    """What L2 has copies of."""
    found = engine().l2.peek_many(keys, policies_in_force().policies)
    return {key for key, entry in found.items() if isinstance(entry, Entry)}


def _in_l1(keys: Sequence[Key]) -> set[Key]:
    found = engine().l1.peek_many(keys, policies_in_force().policies)
    return {key for key, entry in found.items() if isinstance(entry, Entry)}


def test_a_build_drops_the_copies_of_what_changed_and_no_others(cache: Engine) -> None:
    """From L2 and from this process's L1; a row that has the same values again keeps its copies."""
    record([payment("1", START, merchant="m1"), payment("2", START, merchant="m2", amount="7.00")])
    first = build(["merchant_profile"], as_of=NOW, now=NOW)
    assert (first.rows, first.invalidated) == ({"merchant_profile": 2}, {"merchant_profile": 2})
    keys = _merchants("m1", "m2")
    _store(keys)
    record([payment("3", START + timedelta(hours=1), merchant="m2", amount="9.00")])
    report = build(["merchant_profile"], as_of=NOW, now=NOW + timedelta(hours=1))
    assert (report.rows, report.invalidated, report.pending) == ({"merchant_profile": 2}, {"merchant_profile": 1}, 0)
    assert _held(keys) == _in_l1(keys) == set(_merchants("m1"))
    assert set(FeatureRow.objects.values_list("as_of", flat=True)) == {NOW + timedelta(hours=1)}


def test_a_row_that_comes_into_being_or_back_to_life_has_changed(cache: Engine) -> None:
    """L2 may remember of both that there is nothing."""
    record([payment("1", START, merchant="m1")])
    keys = _merchants("m1")
    for _ in range(2):
        now = cache.clock.now()
        write_through({keys[0]: Entry(0, now, now, None)}, write_leases(keys))
        assert _held(keys) == set(keys)
        assert build(["merchant_profile"], as_of=NOW, now=NOW).invalidated == {"merchant_profile": 1}
        assert _held(keys) == set()
        FeatureRow.objects.update(deleted_at=NOW)
        wiring.reset()  # with its L1, and L2 follows
        wiring.l2_client().flushdb()


def test_a_rebuild_of_activity_drops_instead_of_writing_through(cache: Engine) -> None:
    """Only what changed: a payment that was imported past the scoring, a row that comes back to life."""
    record([payment("1", START, customer="c1"), payment("2", START, customer="c2")])
    build(["customer_activity"], as_of=NOW, now=NOW)
    keys = [Key("customer", name, "customer_activity") for name in ("c1", "c2")]
    _store(keys)
    record([payment("3", START, customer="c2")])
    assert build(["customer_activity"], as_of=NOW, now=NOW).invalidated == {"customer_activity": 1}
    assert _held(keys) == {keys[0]}
    FeatureRow.objects.filter(entity_id="c1").update(deleted_at=NOW)
    assert build(["customer_activity"], as_of=NOW, now=NOW).invalidated == {"customer_activity": 1}
    assert _held(keys) == set()


def test_the_hottest_go_last_and_slowest(cache: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment faster than the rates say, so that a rebuild of everything is no avalanche of reloads."""
    monkeypatch.setattr(writes, "_CHUNK", 4)
    monkeypatch.setattr(writes, "_HOT_CHUNK", 1)
    counter = HotKeyCounter()
    for hot, count in (("m3", 5), ("m7", 50)):
        for _ in range(count):
            counter.count("merchant", hot)
    counter.publish(wiring.l2_client(), now=cache.clock.now())
    keys = _merchants(*(f"m{number}" for number in range(10)))
    _store(keys)
    left: list[set[str]] = []
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        left.append({key.id for key in _held(keys)})

    assert write_around(keys, sleep=sleep) == Invalidated(delivered=10, pending=0)
    assert left[-2:] == [{"m3", "m7"}, {"m7"}]
    assert _held(keys) == set()
    assert pauses == [4 / writes.KEYS_PER_SECOND] + [1 / writes.HOT_KEYS_PER_SECOND] * 2


@pytest.mark.quiet
def test_what_l2_could_not_be_told_follows_when_it_answers(cache: Engine, valkey_cache: ServerHandle) -> None:
    """A frozen L2 costs a few timeouts, not one for each chunk; its copies are gone soon after it thaws."""
    keys = _merchants(*(f"m{number}" for number in range(40_000)))
    _store(keys[:100])
    valkey_cache.freeze()
    started = cache.clock.monotonic()
    assert write_around(keys, sleep=lambda _seconds: None) == Invalidated(delivered=0, pending=40_000)
    assert cache.clock.monotonic() - started < 2.0
    assert _in_l1(keys) == set()
    valkey_cache.thaw()
    until(lambda: not len(cache.pending))
    assert _held(keys[:100]) == set()


def test_an_invalidation_that_is_interrupted_is_not_forgotten(cache: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's time limit may strike in a pause."""
    monkeypatch.setattr(writes, "_CHUNK", 2)
    keys = _merchants(*(f"m{number}" for number in range(6)))
    _store(keys)

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_around(keys, sleep=interrupt)
    assert _in_l1(keys) == set()
    until(lambda: not len(cache.pending))
    assert _held(keys) == set()


def test_every_group_says_how_it_is_written() -> None:
    """What a score reads is never behind, and what is asked for by the next request is written through."""
    assert {name for name, group in GROUPS.items() if group.write == "through"} == {"customer_activity"}
    assert {name for name, group in GROUPS.items() if group.write == "behind"} == set(GROUPS) - MODEL_GROUPS
