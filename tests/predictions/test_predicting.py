"""The short way to a prediction against the cascade's: nobody can tell which of them it was."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
import redis

from features.policies import policies_in_force
from mlserve.cache import wiring
from mlserve.cache.cascade import Reading
from mlserve.cache.entry import Entry
from mlserve.cache.keys import PREDICTION, Key
from mlserve.cache.policy import Policy
from mlserve.cache.segments import spread
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import Engine, engine
from predictions.predicting import compute_if_unknown

SCORE = 0.25
Way = Callable[[Sequence[Key], Policy, bool], Reading]


@pytest.fixture
def cache(redis_client: redis.Redis, db: None) -> Iterator[Engine]:
    """An engine of its own, so that its counts are of one test."""
    wiring.reset()
    yield engine()
    wiring.reset()


def _the_short_way(keys: Sequence[Key], policy: Policy, leave_no_trace: bool) -> Reading:
    reading = compute_if_unknown(
        keys, policy=policy, compute=lambda: [SCORE] * len(keys), cache=engine(), leave_no_trace=leave_no_trace
    )
    assert reading is not None
    return reading


def _through_the_cascade(keys: Sequence[Key], policy: Policy, leave_no_trace: bool) -> Reading:
    cache = engine()

    def compute(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        now = cache.clock.now()
        return {key: Entry(1, now, now, (SCORE,)) for key in keys}

    return cache.predictions.read_many(
        keys,
        policies={PREDICTION: policy},
        loader=compute,
        request=RequestTier(),
        budget=cache.budget(),
        leave_no_trace=leave_no_trace,
    )


def _seen(way: Way, keys: Sequence[Key], policy: Policy, leave_no_trace: bool) -> dict[str, Any]:
    """All that is left of one look-up but its times."""
    cache = engine()
    before = cache.recorder.totals()
    reading = way(keys, policy, leave_no_trace)
    counted: defaultdict[Any, float] = defaultdict(float)
    for what, total in cache.recorder.totals().items():
        assert isinstance(what, tuple)
        name = what[:3] if what[0] == "latency" else what  # in whatever bucket
        if not str(what[0]).endswith("_sum"):
            counted[name] += total - before[what]
    assert list(reading.outcomes) == list(keys)
    held = [cache.l1.peek(key) for key in keys]
    return {
        "outcomes": [
            (outcome.tier, outcome.values, outcome.version, outcome.max_age_s, outcome.stale)
            for outcome in reading.outcomes.values()
        ],
        "trace": [(each.tier, each.asked, each.hit) for each in reading.trace],
        "degraded": (set(reading.degradations), dict(reading.degraded)),
        "counted": {what: count for what, count in counted.items() if count},
        "held": [copy and (copy.version, copy.values) for copy in held],
    }


@pytest.mark.parametrize("leave_no_trace", [True, False])
@pytest.mark.parametrize("many", [1, 3])
def test_both_ways_leave_the_same(cache: Engine, many: int, leave_no_trace: bool) -> None:
    """Outcomes, trace, counts and the copies in L1, of a dry run and of a score, of one and of a batch."""
    policy = policies_in_force()[PREDICTION]
    assert policy.use_l1 and not policy.use_l2
    ways = {"short": _the_short_way, "cascade": _through_the_cascade}
    seen = {
        name: _seen(way, _keys(f"{name}-{many}-{leave_no_trace}", many), policy, leave_no_trace)
        for name, way in ways.items()
    }
    assert seen["short"] == seen["cascade"]
    assert [copy is None for copy in seen["short"]["held"]] == [leave_no_trace] * many
    assert bool(seen["short"]["counted"]) != leave_no_trace


@pytest.mark.parametrize("way", [_the_short_way, _through_the_cascade])
@pytest.mark.parametrize(("leave_no_trace", "times"), [(True, 0), (False, 1)])
def test_what_is_computed_was_asked_for_once(cache: Engine, way: Way, leave_no_trace: bool, times: int) -> None:
    """As L1 counts when it chooses what to keep: with the put, since a look that finds nothing is not counted."""
    store, key = cache.l1.store, Key(PREDICTION, f"asked-{way.__name__}-{leave_no_trace}", PREDICTION)
    before = store._sketch.count(spread(key))
    way([key], policies_in_force()[PREDICTION], leave_no_trace)
    store.pop("nobody")  # looks that are not counted yet are counted now
    assert store._sketch.count(spread(key)) - before == times


def test_a_copy_is_left_to_the_cascade(cache: Engine) -> None:
    """It judges whether the copy may serve; the model is not asked, also for the others."""
    policy, keys = policies_in_force()[PREDICTION], _keys("known", 3)
    _the_short_way(keys[1:2], policy, False)
    assert compute_if_unknown(keys, policy=policy, compute=_never, cache=cache, leave_no_trace=False) is None


@pytest.mark.parametrize("changes", [{"use_l2": True}, {"use_l1": False}])
def test_other_policies_are_left_to_the_cascade(cache: Engine, changes: dict[str, bool]) -> None:
    """Where L2 takes part or L1 does not, the model is not asked here."""
    policy = msgspec.structs.replace(policies_in_force()[PREDICTION], **changes)
    assert (
        compute_if_unknown(_keys("other", 1), policy=policy, compute=_never, cache=cache, leave_no_trace=True) is None
    )


def _keys(name: str, many: int) -> list[Key]:
    return [Key(PREDICTION, f"{name}-{number}", PREDICTION) for number in range(many)]


def _never() -> list[float]:
    raise AssertionError("the model was asked")
