"""Which keys are worth reading from the source now. Pure: what is held and what time it is come from outside."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.policy import Policy, Verdict

T = TypeVar("T")

_UNANSWERED = (MissReason.TIMEOUT, MissReason.BREAKER)


def keys_to_load(
    held: Mapping[Key, Entry | MissReason], *, policies: Mapping[str, Policy], now: float, horizon_s: float
) -> list[Key]:
    """The keys that L2 lacks, or holds as copies that will no longer be fresh `horizon_s` seconds from `now`.

    Left out is what loading would not help: groups that do not use L2 or are never fresh, and keys about which L2 did
    not answer.
    """
    return [
        key
        for key, found in held.items()
        if _worth_keeping(policies[key.group])
        and found not in _UNANSWERED
        and not _stays_fresh(found, policies[key.group], now + horizon_s)
    ]


def l2_answered(held: Mapping[Key, Entry | MissReason]) -> bool:
    """Whether L2 said anything at all; if not, there is no use in going on."""
    return not held or any(found not in _UNANSWERED for found in held.values())


def in_chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """All items in order, `size` at a time, the rest at the end."""
    return (items[start : start + size] for start in range(0, len(items), size))


def pause_s(*, keys_loaded: int, elapsed_s: float, keys_per_second: float) -> float:
    """How long to wait so that `keys_loaded` since the beginning, `elapsed_s` ago, stay below the rate."""
    return max(0.0, keys_loaded / keys_per_second - elapsed_s)


def _worth_keeping(policy: Policy) -> bool:
    return policy.use_l2 and policy.fresh_for_s > 0


def _stays_fresh(found: Entry | MissReason, policy: Policy, then: float) -> bool:
    if not isinstance(found, Entry) or (policy.proven and not found.vouched_at):
        return False  # of another epoch: nobody will vouch for it any more
    by_age = msgspec.structs.replace(policy, proven=False)  # who vouches for it then cannot be known now
    return by_age.verdict(found, now=then, max_age_s=None) is Verdict.FRESH
