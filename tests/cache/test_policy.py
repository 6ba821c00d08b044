import pytest

from mlserve.cache.entry import Entry
from mlserve.cache.policy import CLOCK_SKEW_S, Policy, Verdict
from tests.cache.doubles import NOW, entry, negative, policy

FRESH, STALE, EXPIRED = Verdict.FRESH, Verdict.STALE_AT_SOURCE, Verdict.EXPIRED
_JUST = 0.001
POLICY = policy()  # 60 s fresh, so a recheck window of 5 s; 600 s grace; 5 s negative
SHORT = policy(fresh_for_s=20)  # recheck window of 2 s


@pytest.mark.parametrize(
    ("policy", "held", "max_age_s", "verdict"),
    [
        # the age of the values against the policy
        (POLICY, entry(age_s=0), None, FRESH),
        (POLICY, entry(age_s=60), None, FRESH),
        (POLICY, entry(age_s=60 + _JUST), None, EXPIRED),
        # values from a clock that is ahead of ours
        (POLICY, entry(age_s=-1), None, FRESH),
        # against a request that is tighter, or looser, which changes nothing
        (POLICY, entry(age_s=10), 10, FRESH),
        (POLICY, entry(age_s=10 + _JUST), 10, EXPIRED),
        (POLICY, entry(age_s=60), 3600, FRESH),
        (POLICY, entry(age_s=60 + _JUST), 3600, EXPIRED),
        # values past their limit, read from the source a moment ago: it has nothing newer
        (POLICY, entry(age_s=3600, copy_age_s=0), None, STALE),
        (POLICY, entry(age_s=3600, copy_age_s=5), None, STALE),
        (POLICY, entry(age_s=3600, copy_age_s=5 + _JUST), None, EXPIRED),
        (SHORT, entry(age_s=3600, copy_age_s=2), None, STALE),
        (SHORT, entry(age_s=3600, copy_age_s=2 + _JUST), None, EXPIRED),
        (POLICY, entry(age_s=3600, copy_age_s=1), 10, STALE),
        (POLICY, entry(age_s=3600, copy_age_s=1 + _JUST), 10, EXPIRED),
        # a young copy of fresh values stays fresh, however young the copy
        (POLICY, entry(age_s=59, copy_age_s=0), None, FRESH),
        # nothing there: the copy's age alone counts
        (POLICY, negative(copy_age_s=5), None, FRESH),
        (POLICY, negative(copy_age_s=5 + _JUST), None, EXPIRED),
        (POLICY, negative(copy_age_s=1), 1, FRESH),
        (POLICY, negative(copy_age_s=1 + _JUST), 1, EXPIRED),
        (POLICY, negative(copy_age_s=5 + _JUST), 3600, EXPIRED),
        (policy(negative_ttl_s=0), negative(copy_age_s=_JUST), None, EXPIRED),
    ],
)
def test_the_verdict_at_its_boundaries(policy: Policy, held: Entry, max_age_s: float | None, verdict: Verdict) -> None:
    assert policy.verdict(held, now=NOW, max_age_s=max_age_s) is verdict


def test_a_shortened_policy_judges_entries_that_already_exist() -> None:
    """Nothing about freshness is frozen into an entry."""
    held = entry(age_s=30, copy_age_s=30)
    assert policy(fresh_for_s=60).verdict(held, now=NOW, max_age_s=None) is FRESH
    assert policy(fresh_for_s=20).verdict(held, now=NOW, max_age_s=None) is EXPIRED


@pytest.mark.parametrize(("asked_s", "allowed_s"), [(None, 60), (0, 60), (10, 10), (3600, 60)])
def test_the_tighter_of_policy_and_request_holds(asked_s: float | None, allowed_s: float) -> None:
    """0 asks for the source and says nothing about what the source may have."""
    assert POLICY.allowed_age_s(asked_s) == allowed_s


@pytest.mark.parametrize(
    ("held", "serves"),
    [
        (entry(age_s=660), True),
        (entry(age_s=660 + _JUST), False),
        (entry(age_s=660, copy_age_s=0), True),
        (negative(), False),
    ],
)
def test_grace_begins_where_freshness_ends(held: Entry, serves: bool) -> None:
    """Fresh and grace together, of the values; that somebody was unknown is never served past its time."""
    assert POLICY.within_grace(held, now=NOW) is serves


@pytest.mark.parametrize(
    ("policy", "held", "kept_s"),
    [(POLICY, entry(), 660), (POLICY, negative(), 5), (policy(fresh_for_s=0, grace_s=0), entry(), 1)],
)
def test_redis_keeps_a_copy_for_as_long_as_it_could_serve(policy: Policy, held: Entry, kept_s: float) -> None:
    """Redis refuses a stay of nothing, so it is at least a second."""
    assert policy.keep_for_s(held) == kept_s


@pytest.mark.parametrize(
    ("fixed", "repeated", "count", "fits"),
    [
        (None, 0, 9, True),
        (6, 0, 6, True),
        (6, 0, 5, False),
        (6, 0, 7, False),
        (1, 3, 1, True),
        (1, 3, 7, True),
        (1, 3, 6, False),
        (1, 3, 0, False),
    ],
)
def test_an_entry_must_have_as_many_numbers_as_its_namespace(
    fixed: int | None, repeated: int, count: int, fits: bool
) -> None:
    """So that a crafted record of the right schema cannot reach the model's features."""
    held = Entry(1, NOW, NOW, (1.0,) * count)
    assert policy(fixed_values=fixed, repeated_values=repeated).fits(held) is fits


@pytest.mark.parametrize("ahead_s", [CLOCK_SKEW_S + 1, 1e9])
def test_a_copy_from_the_future_is_expired(ahead_s: float) -> None:
    """Beyond what hosts' clocks may differ by; it would be fresh until then. It is no spare copy either."""
    by_age = Entry(1, NOW + ahead_s, NOW, (1.0,))
    checked = Entry(1, NOW - 3600, NOW + ahead_s, (1.0,))
    forgotten = Entry(0, NOW, NOW + ahead_s, None)
    for held in (by_age, checked, forgotten):
        assert policy().verdict(held, now=NOW, max_age_s=None) is Verdict.EXPIRED
    assert not policy().within_grace(by_age, now=NOW)


def test_values_within_their_limit_are_fresh_whenever_they_were_read() -> None:
    """A clock that was put back makes no stampede of copies that were read a while ago."""
    put_back = Entry(1, NOW - 30, NOW + 3600, (1.0,))
    assert policy().verdict(put_back, now=NOW, max_age_s=None) is Verdict.FRESH
    assert policy().verdict(put_back, now=NOW + 31, max_age_s=None) is Verdict.EXPIRED
