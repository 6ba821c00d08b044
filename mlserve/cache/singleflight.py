"""One look below L1 per key at a time in this process: who comes while another thread looks waits for what it brings.

Without it a thousand threads that want one key ask Redis a thousand times, use up its connections, and those who find
none go to Postgres. Who joins a flight gets what was read since that flight began, so a read may be older than its own
start by as long as the flight took; flights older than `JOINED_UP_TO_S` are not joined.
"""

import threading
from collections.abc import Mapping, Sequence

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier

Brought = Mapping[Key, tuple[Entry, Tier]]
"""What a look found, and where."""


JOINED_UP_TO_S = 0.5


class Flight:
    """One look that is under way, for any number of keys. It always lands, with what it brought or with nothing."""

    __slots__ = ("_landed", "brought", "past_limit", "refreshing", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.brought: Brought = {}
        self.past_limit: Brought = {}
        """What could not be read, or is being loaded elsewhere: the newest copies that were seen."""
        self.refreshing = False
        """What it did not bring is being loaded elsewhere, as opposed to: could not be read."""
        self._landed: threading.Event | None = None

    def join(self) -> None:
        """Somebody will wait. Under the lock of the flights."""
        if self._landed is None:
            self._landed = threading.Event()

    def land(self, brought: Brought, past_limit: Brought, *, refreshing: bool) -> None:
        """When nobody can join any more."""
        self.brought, self.past_limit, self.refreshing = brought, past_limit, refreshing
        if self._landed is not None:
            self._landed.set()

    def wait(self, timeout_s: float) -> bool:
        """For who has joined. False if it has not landed by then."""
        assert self._landed is not None
        return self._landed.wait(timeout_s)


class Flights:
    """Of one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_air: dict[Key, Flight] = {}

    def board(self, keys: Sequence[Key], *, now: float) -> tuple[Flight, list[Key], dict[Key, Flight]]:
        """The caller's flight, the keys that are on it, and the flights of those that other threads fetch already.

        `now` in seconds, monotonic. The caller must `land` its flight, whatever happens.
        """
        mine, flight, others = [], Flight(now), {}
        with self._lock:
            for key in keys:
                held = self._in_air.get(key)
                if held is None or now - held.started > JOINED_UP_TO_S:
                    self._in_air[key] = flight
                    mine.append(key)
                elif held is not flight:
                    held.join()
                    others[key] = held
        return flight, mine, others

    def land(
        self, flight: Flight, keys: Sequence[Key], brought: Brought, past_limit: Brought, *, refreshing: bool
    ) -> None:
        """Ends the caller's flight: everybody who waits gets what it brought."""
        with self._lock:
            for key in keys:
                if self._in_air.get(key) is flight:
                    del self._in_air[key]
        flight.land(brought, past_limit, refreshing=refreshing)
