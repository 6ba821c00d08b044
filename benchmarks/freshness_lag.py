"""When the last process has let go of an old version. Pure arithmetic over what writers and readers wrote down.

All moments are of one host's clock (s). A process sees versions of a key one after the other, each at a first and a
last moment. What it saw last of a version older than a write bounds from below how long the old value lasted there; the
first moment of what came next bounds it from above.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import msgspec

NOTHING = 2**63
"""Instead of a version: the process holds no copy, hence no old one."""


class Stay(msgspec.Struct, array_like=True):
    """A version as one process saw it, without another one in between."""

    version: int
    first: float
    last: float


History = Mapping[int, Sequence[Stay]]
"""By key, in the order in which they were seen."""


class Write(msgspec.Struct, frozen=True):
    """A commit: `acknowledged` is when its writer was told."""

    key: int
    version: int
    acknowledged: float


class Lag(msgspec.Struct, frozen=True):
    """From the acknowledgement of one write until the last process had the old value for the last time (s), and until
    the last one had something else; both at least 0."""

    old: float
    new: float


class NeverSeen(Exception):
    """A process still had an older version when it stopped to look."""


def lags(writes: Sequence[Write], histories: Sequence[History]) -> list[Lag]:
    """For each write, over all processes. Raises NeverSeen."""
    return [_lag(write, histories) for write in writes]


def _lag(write: Write, histories: Sequence[History]) -> Lag:
    old, new = 0.0, 0.0
    for history in histories:
        stays = history.get(write.key, ())
        older = [place for place, stay in enumerate(stays) if stay.version < write.version]
        if not older:
            continue
        if older[-1] + 1 == len(stays):
            raise NeverSeen(f"version {stays[-1].version} of key {write.key} outlived version {write.version}")
        old = max(old, stays[older[-1]].last - write.acknowledged)
        new = max(new, stays[older[-1] + 1].first - write.acknowledged)
    return Lag(old, new)


class Spread(msgspec.Struct, frozen=True):
    """Of lags (s). `late`: share of those over a second."""

    p50: float
    p99: float
    max: float
    late: float


def spread_of(lags: Sequence[float]) -> Spread:
    """At least one is needed."""
    in_order = sorted(lags)
    late = len(in_order) - bisect_left(in_order, 1.0)
    return Spread(_quantile(in_order, 0.5), _quantile(in_order, 0.99), in_order[-1], late / len(in_order))


def _quantile(in_order: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    return in_order[max(0, -(-round(share * 1000) * len(in_order) // 1000) - 1)]
