"""One deadline for all the cache work of a request, so that slow tiers cannot add up."""

from mlserve.cache.clock import Clock


class Budget:
    """Starts when made. Not shared between requests."""

    __slots__ = ("_deadline", "_monotonic")

    def __init__(self, clock: Clock, budget_s: float) -> None:
        self._monotonic = clock.monotonic
        self._deadline = self._monotonic() + budget_s

    def left_s(self) -> float:
        """Never below 0."""
        return max(0.0, self._deadline - self._monotonic())

    def spent(self) -> bool:
        return self._monotonic() >= self._deadline
