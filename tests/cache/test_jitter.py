"""Copies of one moment do not expire in one moment; and what the quick look at L1 decides, the policy decides."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from mlserve.cache.entry import Entry
from mlserve.cache.keys import JITTER_SHARE, Key, life_share
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import CLOCK_SKEW_S, Verdict
from mlserve.cache.refresher import NullRefresher
from tests.cache.doubles import NOW, policy
from tests.cache.worlds import World

KEYS = [Key("customer", f"C{number}", "group") for number in range(5_000)]
ODD = [Key("customer", "ü\x1f\ud800", "group"), Key("", "", ""), Key("a\x1fb", "c", "d"), Key("a", "b\x1fc", "d")]
_SHARES = """
import json, sys
from mlserve.cache.keys import Key, life_share
print(json.dumps([life_share(Key(*key)) for key in json.load(sys.stdin)]))
"""


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_every_process_gives_a_key_the_same_share(hash_seed: str) -> None:
    """So that one process does not reload what another one has just called fresh."""
    keys = KEYS[:50] + ODD
    ran = subprocess.run(
        [sys.executable, "-c", _SHARES],
        input=json.dumps([(key.kind, key.id, key.group) for key in keys]),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == [life_share(key) for key in keys]


def test_shares_are_spread_evenly() -> None:
    """Above 0.9 and at most 1, for ids that count up as well."""
    shares = np.array([life_share(key) for key in KEYS])
    assert ((shares > 1 - JITTER_SHARE) & (shares <= 1)).all()
    assert kstest((1 - shares) / JITTER_SHARE, "uniform").pvalue > 1e-4


def test_copies_written_together_expire_one_after_the_other() -> None:
    """After 95 % of the limit half of them are gone, whoever holds them; each at its own moment for every reader."""
    in_force = policy()
    copy = Entry(1, NOW, NOW, (1.0,))

    def expired(at_share: float) -> int:
        now = NOW + at_share * in_force.fresh_for_s
        return sum(
            in_force.verdict(copy, now=now, max_age_s=None, life_share=life_share(key)) is Verdict.EXPIRED
            for key in KEYS
        )

    assert expired(1 - JITTER_SHARE) == 0
    assert 0.47 < expired(1 - JITTER_SHARE / 2) / len(KEYS) < 0.53
    assert expired(1.0001) == len(KEYS)


@given(
    age_s=st.floats(0, 60),
    copy_age_s=st.floats(0, 120),
    share=st.floats(1 - JITTER_SHARE, 1),
    max_age_s=st.none() | st.floats(0, 120),
)
def test_jitter_never_calls_values_within_their_limit_stale(
    age_s: float, copy_age_s: float, share: float, max_age_s: float | None
) -> None:
    """It may ask the source once more, and no more than that."""
    in_force = policy()
    held = Entry(1, NOW - age_s, NOW - copy_age_s, (1.0,))
    if NOW - held.as_of <= in_force.allowed_age_s(max_age_s):
        verdict = in_force.verdict(held, now=NOW, max_age_s=max_age_s, life_share=share)
        assert verdict is not Verdict.STALE_AT_SOURCE


def test_a_source_that_has_nothing_newer_is_not_called_stale_within_the_limit() -> None:
    """The last tenth of the limit, seen through the cascade: read again, and fresh."""
    world = World({"group": policy()}, life_share=lambda key: 1 - JITTER_SHARE)
    world.source.write(KEYS[0])
    world.clock.advance(57)
    for _ in range(3):
        outcome = world.read(KEYS[0]).outcomes[KEYS[0]]
        assert (outcome.age_s, outcome.stale) == (57, False)
    assert len(world.source.asked) == 1


_moments = st.one_of(
    st.floats(-2 * CLOCK_SKEW_S, 4_000),
    st.sampled_from([0.0, 54.0, 60.0, 3_240.0, 3_600.0, -CLOCK_SKEW_S, CLOCK_SKEW_S]),
)


@settings(max_examples=300, deadline=None)
@given(
    age_s=_moments,
    copy_age_s=_moments,
    cost_s=st.sampled_from([0.0, 0.001, 1.0, 1e6]),
    values=st.sampled_from([None, (1.0,)]),
    fresh_for_s=st.sampled_from([0.0, 0.5, 60.0, 3_600.0]),
    use_l1=st.booleans(),
)
def test_the_quick_look_at_l1_and_the_policy_agree(
    age_s: float,
    copy_age_s: float,
    cost_s: float,
    values: tuple[float, ...] | None,
    fresh_for_s: float,
    use_l1: bool,
) -> None:
    """Whatever lies there: it is served if and only if the policy says so, and flagged as the policy says."""
    in_force = policy(fresh_for_s=fresh_for_s, use_l1=use_l1, use_l2=False, grace_s=0)
    world = World({"group": in_force}, refresher=NullRefresher())
    key = KEYS[0]
    now = world.clock.now()
    world.source.write(key)
    newest = world.source.write(key)
    held = world.l1.held[key] = Entry(1, now - age_s, now - copy_age_s, values, cost_s)
    verdict = in_force.verdict(held, now=now, max_age_s=None, life_share=life_share(key))
    outcome = world.read(key).outcomes[key]
    if not use_l1 or verdict is Verdict.EXPIRED:
        assert (outcome.entry, outcome.tier, outcome.stale) == (newest, Tier.L3, False)
        return
    assert outcome.entry is held
    assert outcome.tier is (Tier.L1 if values else Tier.DEFAULT)
    assert outcome.age_s == (max(0.0, now - held.as_of) if values else 0.0)
    assert outcome.stale == (verdict is Verdict.STALE_AT_SOURCE)
