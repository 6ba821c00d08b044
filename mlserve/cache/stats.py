"""What the engine tells about itself, in the cheapest form the hot path can afford."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

from mlserve.cache.outcome import MissReason, Tier


class Stats(Protocol):
    """Every look-up of a key in a tier ends in exactly one hit or one `miss`. `namespace`: group or `prediction`."""

    def hits(self, tier: Tier) -> Mapping[str, list[float]]:
        """This thread's hits of a tier, by namespace: a hit is counted by appending the age (s) of what was served.

        A list that is appended to is the cheapest counter there is, and tells the ages as well. Reads of the source are
        counted alike. Not to be kept for longer than a call.
        """
        ...

    def late(self) -> Mapping[str, list[float]]:
        """The same for what was served after every tier had missed and without a read of the source of one's own:
        brought by another caller's load, or a spare copy past its limit."""
        ...

    def miss(self, tier: Tier, namespace: str, reason: MissReason) -> None: ...

    def latency(self, tier: Tier, namespaces: Iterable[str], seconds: float) -> None:
        """One look-up of a tier with all its keys; counted once for each namespace that took part."""
        ...

    def source_error(self, reason: str) -> None: ...

    def fill_refused(self, tier: Tier, reason: str, count: int) -> None:
        """Copies that a tier did not take."""
        ...

    def stale(self, namespace: str) -> None:
        """Served past its limit, flagged."""
        ...

    def defaulted(self, namespace: str) -> None:
        """Nobody had a value."""
        ...

    def event(self, what: str, count: int = 1) -> None:
        """Something that protects the source took place: one of `EVENTS`."""
        ...


EVENTS = (
    "flight_joined",  # waited for another thread's load instead of loading
    "lease_waited",  # another process loads: waited for it
    "lease_overdue",  # it took too long: loaded without filling, or served a stale copy
    "filled_meanwhile",  # somebody else's fill was found when the lease was asked for
    "refreshed_early",  # XFetch: reloaded before expiry
    "unknown_by_filter",  # the Bloom filter said that the id never existed
    "clock_ahead",  # a watermark from more than a tenth of a second in the future
    "envelope_mismatch",  # a record or a watermark without our seal: somebody else's, or from before the key was set
    "watermark_went_back",  # it promises less than it did before: a failover, or somebody put an old one back
    "history_lost",  # L2 promised less than this process had heard: it has failed over to an older history
    "negative_refused",  # a negative entry was not kept, the cap being reached
)


class NullStats:
    """Counts nothing."""

    def hits(self, tier: Tier) -> Mapping[str, list[float]]:
        return defaultdict(list)

    def late(self) -> Mapping[str, list[float]]:
        return defaultdict(list)

    def miss(self, tier: Tier, namespace: str, reason: MissReason) -> None: ...

    def latency(self, tier: Tier, namespaces: Iterable[str], seconds: float) -> None: ...

    def source_error(self, reason: str) -> None: ...

    def fill_refused(self, tier: Tier, reason: str, count: int) -> None: ...

    def stale(self, namespace: str) -> None: ...

    def defaulted(self, namespace: str) -> None: ...

    def event(self, what: str, count: int = 1) -> None: ...
