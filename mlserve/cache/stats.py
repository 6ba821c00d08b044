"""What the engine tells about itself, in the cheapest form the hot path can afford."""

from typing import Protocol

from mlserve.cache.outcome import MissReason, Tier


class Stats(Protocol):
    """Every look-up of a key in a tier ends in exactly one of `hit` and `miss`. `namespace`: group or `prediction`."""

    def hit(self, tier: Tier, namespace: str) -> None: ...

    def miss(self, tier: Tier, namespace: str, reason: MissReason) -> None: ...

    def latency(self, tier: Tier, seconds: float) -> None:
        """One look-up of a tier with all its keys."""
        ...

    def load(self, namespace: str, count: int) -> None:
        """Keys read from the source."""
        ...

    def source_error(self, reason: str) -> None: ...

    def fill_refused(self, tier: Tier, reason: str, count: int) -> None:
        """Copies that a tier did not take."""
        ...

    def served(self, namespace: str, age_s: float | None, *, stale: bool) -> None:
        """What the caller got in the end; `age_s` None: nothing, so a default."""
        ...


class NullStats:
    """Counts nothing."""

    def hit(self, tier: Tier, namespace: str) -> None: ...

    def miss(self, tier: Tier, namespace: str, reason: MissReason) -> None: ...

    def latency(self, tier: Tier, seconds: float) -> None: ...

    def load(self, namespace: str, count: int) -> None: ...

    def source_error(self, reason: str) -> None: ...

    def fill_refused(self, tier: Tier, reason: str, count: int) -> None: ...

    def served(self, namespace: str, age_s: float | None, *, stale: bool) -> None: ...
