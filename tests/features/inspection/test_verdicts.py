"""The rules by which a copy is wrong, without any server."""

import pytest

from features.inspection.copies import Copy
from features.inspection.verdicts import Cause, contradicts, is_allowed_to_miss, judge_again, misses_write
from mlserve.cache.entry import Entry
from mlserve.cache.inquiry import digest_of
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy

KEY = Key("merchant", "m1", "merchant_risk")


def _copy(version: int, values: tuple[float, ...] | None = (1.0,), *, serves: bool = True) -> Copy:
    return Copy(Tier.L2, "", KEY, version, digest_of(values), serves)


def _row(version: int, values: tuple[float, ...] | None = (1.0,)) -> Entry:
    return Entry(version, 1.0, 1.0, values)


def _policy(*, proven: bool) -> Policy:
    return Policy(namespace="g", schema=1, fresh_for_s=60, grace_s=0, negative_ttl_s=5, proven=proven, bound_s=1.0)


@pytest.mark.parametrize(
    ("copy", "row", "cause"),
    [
        (_copy(5), _row(5), None),
        (_copy(5, (2.0,)), _row(5), Cause.WRONG_BYTES),
        (_copy(5, (-0.0,)), _row(5, (0.0,)), Cause.WRONG_BYTES),
        (_copy(5, None), _row(5), Cause.WRONG_BYTES),
        (_copy(5), _row(5, None), Cause.WRONG_BYTES),
        (_copy(0, None), _row(0, None), None),
        (_copy(5, (2.0,)), _row(6), None),
        (_copy(7), _row(6), Cause.UNKNOWN),
        (_copy(7), _row(0, None), None),
        (_copy(5, (2.0,), serves=False), _row(5), None),
        (_copy(7, serves=False), _row(6), None),
    ],
)
def test_a_copy_against_its_row(copy: Copy, row: Entry, cause: Cause | None) -> None:
    """Only what would be served counts, and only versions that can be compared."""
    assert contradicts(copy, row) is cause


@pytest.mark.parametrize(
    ("now", "row", "cause"),
    [
        (None, _row(6), Cause.LATE),
        (_copy(5, serves=False), _row(6), Cause.LATE),
        (_copy(6), _row(6), Cause.LATE),
        (_copy(5), _row(6), Cause.LOST_INVALIDATION),
        (_copy(4), _row(6), Cause.LOST_INVALIDATION),
        (_copy(5), _row(0, None), Cause.LOST_INVALIDATION),
        (_copy(0, None), _row(0, None), None),
    ],
)
def test_the_second_look_at_a_copy_that_missed_version_6(now: Copy | None, row: Entry, cause: Cause | None) -> None:
    """Gone, still there, or right after all: the row was purged."""
    assert judge_again(now, 6, row) is cause


def test_a_copy_may_miss_a_write_as_long_as_its_contract_says() -> None:
    """By age alone for as long as the policy lets it serve; where freshness is proven until the bound."""
    assert is_allowed_to_miss(_policy(proven=False), age_s=1e6)
    assert is_allowed_to_miss(_policy(proven=True), age_s=1.0)
    assert not is_allowed_to_miss(_policy(proven=True), age_s=1.01)


def test_what_is_not_served_misses_nothing() -> None:
    """Nobody gets it unflagged."""
    assert misses_write(_copy(5), 6) and not misses_write(_copy(6), 6)
    assert not misses_write(_copy(5, serves=False), 6)
