"""Whether a copy is wrong, and how: pure rules, over what a tier was seen to hold and what Postgres says.

A copy that misses a write is not wrong by itself. Where a policy goes by age alone it may serve until it is as old as
the policy allows: that is its contract, and only told in the histogram of staleness. Where freshness is proven the
contract ends with the bound. Bytes that are not those of their version are within no contract.
"""

from enum import StrEnum

from features.inspection.copies import Copy
from mlserve.cache.entry import Entry
from mlserve.cache.inquiry import digest_of
from mlserve.cache.policy import Policy


class Cause(StrEnum):
    LATE = "late"
    """It missed a write that it should have had, and was gone at the second look."""
    LOST_INVALIDATION = "lost_invalidation"
    """It missed the write, and was still there at the second look."""
    WRONG_BYTES = "wrong_bytes"
    """Its values are not those of the row of its version."""
    UNKNOWN = "unknown"
    """Its version is larger than any that Postgres has given the row: of a commit that was lost, or made up."""


def misses_write(copy: Copy, version: int) -> bool:
    """Whether a request would get this copy, unflagged, without the write of `version`."""
    return copy.serves and copy.version < version


def is_allowed_to_miss(policy: Policy, *, age_s: float) -> bool:
    """Whether a copy may serve without a write that was committed at least `age_s` ago."""
    return not policy.proven or age_s <= policy.bound_s


def contradicts(copy: Copy, row: Entry) -> Cause | None:
    """Compares a copy that would be served with its row, which was read after it.

    A row with a larger version has moved on since; nothing can be said of that copy. One with version 0 is none: there
    never was a row, or it was purged.
    """
    if not copy.serves:
        return None
    if copy.version == row.version:
        return None if copy.digest == digest_of(row.values) else Cause.WRONG_BYTES
    return Cause.UNKNOWN if 0 < row.version < copy.version else None


def judge_again(now: Copy | None, version: int, row: Entry) -> Cause | None:
    """The second look at a copy that missed the write of `version`. `row` was read after it.

    None if there was no mistake: the row was purged, and the copy says what Postgres says.
    """
    if now is None or not misses_write(now, version):
        return Cause.LATE
    if now.version == row.version and now.digest == digest_of(row.values):
        return None
    return Cause.LOST_INVALIDATION
