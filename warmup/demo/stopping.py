"""Ctrl-C, TERM and a closed terminal, turned into an orderly end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """Somebody wants the demo to end. Like KeyboardInterrupt, not to be caught on the way."""


class Stop:
    """While `raises`, a signal interrupts whatever goes on; afterwards it is only noted, for loops that look."""

    def __init__(self) -> None:
        self.raises = True
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    def wait(self, seconds: float) -> bool:
        """Returns early, and True, once the end is requested."""
        return self._requested.wait(seconds)

    def run_undisturbed(self, step: Callable[[], None]) -> None:
        """A signal during `step` takes effect after it: for what must not be left half done."""
        raises, self.raises = self.raises, False
        step()
        self.raises = raises
        if raises and self.requested:
            raise StopRequested

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        again = self.requested
        self._requested.set()
        if self.raises and not again:
            raise StopRequested


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """In the main thread only."""
    stop = Stop()
    before = {number: signal.signal(number, stop._note) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
