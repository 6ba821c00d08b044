"""Ctrl-C, TERM and a closed terminal, turned into an orderly end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """Somebody wants the command to end. Like KeyboardInterrupt, not to be caught on the way."""


class Stop:
    """While `raises`, a signal interrupts whatever goes on; afterwards it is only noted, for loops that look.

    Python drops an exception that a handler raises inside a callback of C code (a weak reference's, a finalizer's, one
    that follows a fork). So the request is remembered as well, for `check`, and every further signal raises again.
    """

    def __init__(self) -> None:
        self.raises = True
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    def wait(self, seconds: float) -> bool:
        """Returns early, and True, once the end is requested."""
        return self._requested.wait(seconds)

    def check(self) -> None:
        """Raises StopRequested where a signal would, if there was one."""
        if self.raises and self.requested:
            raise StopRequested

    def run_undisturbed(self, step: Callable[[], None]) -> None:
        """A signal during `step` takes effect after it: for what must not be left half done."""
        raises, self.raises = self.raises, False
        step()
        self.raises = raises
        self.check()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._requested.set()
        self.check()


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
