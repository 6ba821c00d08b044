from hypothesis import given
from hypothesis import strategies as st

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.policy import Policy, Verdict
from warmup.plan import in_chunks, keys_to_load, l2_answered, pause_s

NOW = 1_700_000_000.0

_policies = st.builds(
    Policy,
    namespace=st.just("group"),
    schema=st.just(1),
    fresh_for_s=st.sampled_from([0.0, 5.0, 60.0, 3600.0]),
    grace_s=st.just(60.0),
    negative_ttl_s=st.sampled_from([0.0, 5.0, 30.0]),
    use_l2=st.booleans(),
)
_ages = st.floats(min_value=0, max_value=7200)
_entries = st.builds(
    lambda age, copy_age, values: Entry(1, NOW - max(age, copy_age), NOW - copy_age, values),
    _ages,
    _ages,
    st.sampled_from([None, (1.0, 2.0)]),
)


@given(
    held=st.dictionaries(
        st.builds(Key, kind=st.just("customer"), id=st.text(min_size=1, max_size=3), group=st.just("group")),
        st.one_of(_entries, st.sampled_from(list(MissReason))),
    ),
    policy=_policies,
    horizon_s=st.floats(min_value=0, max_value=60),
)
def test_what_is_left_alone_either_stays_fresh_or_cannot_be_helped(held, policy, horizon_s) -> None:
    """And what is loaded is missing or would expire within the horizon; nothing is loaded twice or invented."""
    chosen = keys_to_load(held, policies={"group": policy}, now=NOW, horizon_s=horizon_s)
    assert len(set(chosen)) == len(chosen) and set(chosen) <= held.keys()
    for key, found in held.items():
        hopeless = not policy.use_l2 or policy.fresh_for_s == 0 or found in (MissReason.TIMEOUT, MissReason.BREAKER)
        fresh_then = (
            isinstance(found, Entry) and policy.verdict(found, now=NOW + horizon_s, max_age_s=None) is Verdict.FRESH
        )
        assert (key in chosen) == (not hopeless and not fresh_then)


@given(st.lists(st.integers()), st.integers(min_value=1, max_value=10))
def test_chunks_are_the_whole_in_order(items: list[int], size: int) -> None:
    """None is empty or larger than the size."""
    chunks = list(in_chunks(items, size))
    assert [item for chunk in chunks for item in chunk] == items
    assert all(1 <= len(chunk) <= size for chunk in chunks)


@given(st.integers(0, 10**6), st.floats(0, 1000), st.floats(1, 10**5))
def test_the_pause_holds_the_rate_and_no_longer(keys: int, elapsed_s: float, rate: float) -> None:
    """After it, the keys loaded are at most the rate times the time that passed; a slow run never waits."""
    pause = pause_s(keys_loaded=keys, elapsed_s=elapsed_s, keys_per_second=rate)
    assert pause >= 0
    assert keys <= rate * (elapsed_s + pause) * (1 + 1e-9) + 1e-6
    assert pause == 0 or keys > rate * elapsed_s


def test_l2_that_answers_no_key_is_away() -> None:
    """One answer, even a miss, shows that it is there."""
    keys = [Key("customer", str(number), "group") for number in range(3)]
    assert not l2_answered(dict.fromkeys(keys, MissReason.TIMEOUT))
    assert not l2_answered({keys[0]: MissReason.BREAKER, keys[1]: MissReason.TIMEOUT})
    assert l2_answered({keys[0]: MissReason.TIMEOUT, keys[1]: MissReason.COLD})
    assert l2_answered({})
