from datetime import UTC, datetime, timedelta
from threading import Barrier, Event, Thread

import pytest
from django.db import connection, connections

from features.models import Transaction
from features.policies import policies_in_force
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.wiring import engine, l2_client
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from warmup import run, sources
from warmup.only_one import only_one
from warmup.sources import WarmEntity, keys_of, most_active


def _now() -> datetime:
    return datetime.now(UTC)


def _in_l2(*entities: tuple[str, str]) -> dict[Key, Entry]:
    keys = [key for entity in entities for key in keys_of(WarmEntity(*entity))]
    held = engine().l2.peek_many(keys, policies_in_force().policies)
    return {key: found for key, found in held.items() if isinstance(found, Entry)}


def test_after_a_warm_up_the_first_score_is_answered_by_l2(world: World) -> None:
    """All groups of the customer and of the merchant; Postgres is not asked."""
    report = run.warm_most_active(limit=1000, now=_now())
    assert not report.stopped
    assert report.keys_put == report.keys_asked == report.entities * 3
    answer = world.score()
    asked_of_l2 = answer.tier("l2")
    assert asked_of_l2 is not None and asked_of_l2["hit"] == 6
    assert answer.tier("l3") is None


def test_warming_again_loads_nothing(world: World) -> None:
    """What is in L2 and stays fresh for a while is left alone, its copies untouched.

    That an id is unknown does not stay fresh for that long; customers whom other tests made up have no profile.
    """
    now = _now()
    run.warm_most_active(limit=10, now=now)
    before = {entity: _in_l2((entity.kind, entity.id)) for entity in most_active(limit=10, now=now)}
    known = {key: entry for held in before.values() for key, entry in held.items() if entry.values is not None}
    again = run.warm_most_active(limit=10, now=now)
    assert again.keys_loaded == again.keys_put == again.keys_asked - len(known)
    after = [_in_l2((entity.kind, entity.id)) for entity in before]
    assert {key: entry for held in after for key, entry in held.items() if key in known} == known


def test_the_most_active_are_those_with_the_most_recent_transactions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted over the newest that are not after now; both kinds, the busiest first, at most the limit of each."""
    # A moment of the past, so that what other tests score does not count.
    now = world.built_at - timedelta(days=10)
    monkeypatch.setattr(sources, "RECENT_TRANSACTIONS", 200)
    before_now = Transaction.objects.filter(occurred_at__lte=now).order_by("-occurred_at")
    recent = list(before_now.values_list("customer_id", "merchant_id")[:200])
    counts: dict[WarmEntity, int] = {}
    for customer, merchant in recent:
        for entity in (WarmEntity("customer", customer), WarmEntity("merchant", merchant)):
            counts[entity] = counts.get(entity, 0) + 1
    everybody = most_active(limit=10_000, now=now)
    assert set(everybody) == counts.keys()
    assert [counts[entity] for entity in everybody] == sorted(counts.values(), reverse=True)
    few = most_active(limit=3, now=now)
    assert sorted(entity.kind for entity in few) == ["customer"] * 3 + ["merchant"] * 3
    assert few == [entity for entity in everybody if entity in few]


def test_a_ledger_that_ended_long_ago_is_warmed_by_its_last_days(world: World) -> None:
    """And one that has not begun, by nobody."""
    assert most_active(limit=5, now=_now() + timedelta(days=3650))
    assert most_active(limit=5, now=datetime(1990, 1, 1, tzinfo=UTC)) == []


def test_only_what_was_asked_for_is_hot(world: World) -> None:
    """Hot is measured from requests: the two entities of this one, none of the others."""
    world.score()
    engine().publish()
    report = run.refresh_hot_keys(limit=100, now=_now())
    assert (report.entities, report.keys_asked) == (2, 6)


def test_a_hot_copy_that_would_expire_soon_is_read_anew(world: World) -> None:
    """The others keep theirs: the batch groups are fresh for hours yet."""
    world.score()
    world.settle()
    engine().publish()
    activity = Key("customer", world.customer, "customer_activity")
    before = _in_l2(("customer", world.customer), ("merchant", world.merchant))
    world.edit_policy("customer_activity", fresh_for_s=run.REFRESH_HORIZON_S - 1)
    report = run.refresh_hot_keys(limit=100, now=_now())
    after = _in_l2(("customer", world.customer), ("merchant", world.merchant))
    assert (report.keys_loaded, report.keys_put) == (1, 1)
    assert after.pop(activity).as_of > before.pop(activity).as_of
    assert after == before


def test_names_in_the_hot_list_that_are_no_entities_are_passed_over(world: World) -> None:
    """Whoever can write to Redis cannot make the refresh fail."""
    now = _now().timestamp()
    l2_client().zadd(f"mlserve:hot:{{0}}:{int(now // 60)}", {b"\xff\xfe": 9, b"planet\x1fX": 8, b"customer\x1f": 7})
    assert run.refresh_hot_keys(limit=100, now=_now()).entities == 0


def test_without_l2_a_run_ends_at_once_and_reads_nothing(world: World, valkey_cache: ServerHandle) -> None:
    """It says why."""
    valkey_cache.kill()
    report = run.warm_most_active(limit=1000, now=_now())
    assert report.stopped.startswith("l2")
    assert report.keys_loaded == 0
    assert run.refresh_hot_keys(limit=10, now=_now()).stopped.startswith("l2")


def test_a_run_ends_when_postgres_stops_answering(world: World) -> None:
    """As the process's breaker says."""
    breaker = engine().l3_breaker
    breaker.failure(timed_out=True)
    report = run.warm_most_active(limit=1000, now=_now())
    assert report.stopped == "postgres does not answer: breaker"
    assert report.keys_put == 0


def test_a_run_that_finds_another_one_leaves_at_once(world: World) -> None:
    """A task that takes longer than its interval does not run beside itself; other tasks are not held up."""
    inside, leave = Event(), Event()

    def hold() -> None:
        with only_one("warm_most_active") as granted:
            assert granted
            inside.set()
            leave.wait(20)
        connections.close_all()

    holder = Thread(target=hold)
    holder.start()
    assert inside.wait(20)
    try:
        assert run.warm_most_active(limit=1, now=_now()).stopped == "another run is under way"
        assert not run.refresh_hot_keys(limit=1, now=_now()).stopped
    finally:
        leave.set()
        holder.join()
    assert not run.warm_most_active(limit=1, now=_now()).stopped


def test_of_several_that_begin_at_once_one_runs(world: World) -> None:
    """And when it has ended, the lock is free."""
    together, all_tried = Barrier(3), Barrier(3)
    granted_to = []

    def compete() -> None:
        together.wait(20)
        with only_one("a race") as granted:
            if granted:
                granted_to.append(1)
            all_tried.wait(20)
        connections.close_all()

    threads = [Thread(target=compete) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted_to) == 1
    with only_one("a race") as granted:
        assert granted


def test_the_lock_goes_with_a_connection_that_breaks(world: World) -> None:
    """A worker that is killed in the middle holds nobody up."""
    with only_one("broken") as granted:
        assert granted
        connection.close()
    with only_one("broken") as granted:
        assert granted


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, float("nan"), "10", None, 10**12, [1]])
def test_a_limit_that_is_none_is_refused_before_anything_is_read(limit: object) -> None:
    """By an error that shows it."""
    for work in (run.warm_most_active, run.refresh_hot_keys):
        with pytest.raises(ValueError, match="limit"):
            work(limit=limit, now=_now())  # type: ignore[arg-type]
