"""One deadline for all the cache work of a request, so that slow tiers cannot add up."""

from mlserve.cache.clock import Clock


class Budget:
    """Starts when made. Not shared between requests."""

    __slots__ = ("_clock", "_deadline")

    def __init__(self, clock: Clock, budget_s: float) -> None:
        self._clock = clock
        self._deadline = clock.monotonic() + budget_s

    def spent(self) -> bool:
        return self._clock.monotonic() >= self._deadline
