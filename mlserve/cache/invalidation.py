"""Invalidations that could not be delivered yet.

They are never dropped: a copy that should be gone is a wrong answer.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

from mlserve.cache.keys import Key

_KEYS_PER_TRIP = 1_000
"""What Redis deletes well within one timeout."""


class Forgets(Protocol):
    """A tier, or more than one."""

    def drop_many(self, keys: Sequence[Key]) -> bool:
        """False if somebody could not be told, in which case the caller must try again."""
        ...


class Withdraws(Protocol):
    """The bus, as far as it is needed here."""

    def withdraw(self, keys: Sequence[Key]) -> bool: ...


class Everywhere:
    """L2, and by way of the bus the memory of every process."""

    def __init__(self, l2: Forgets, bus: Withdraws) -> None:
        self._l2 = l2
        self._bus = bus

    def drop_many(self, keys: Sequence[Key]) -> bool:
        # L2 first: whoever hears of it before could take the copy from there again.
        return self._l2.drop_many(keys) and self._bus.withdraw(keys)


class PendingInvalidations:
    """Of one process for one tier. Thread-safe. Bounded by the number of keys that exist: each is kept once."""

    def __init__(self, tier: Forgets) -> None:
        self._tier = tier
        self._lock = threading.Lock()
        self._keys: dict[Key, object] = {}
        """A mark per key that tells a later invalidation of the same key from the one that is being delivered."""

    def __len__(self) -> int:
        return len(self._keys)

    def drop(self, keys: Sequence[Key]) -> bool:
        """Tell the tier now; what it could not be told is kept for `retry`. True if it was told."""
        if self._tier.drop_many(keys):
            return True
        self.remember(keys)
        return False

    def remember(self, keys: Sequence[Key]) -> None:
        """The tier holds copies of these that must go, and could not be told."""
        with self._lock:
            self._keys.update(dict.fromkeys(keys, object()))

    def retry(self) -> None:
        """Deliver what is pending, until the tier fails. A key that is invalidated again meanwhile stays pending."""
        with self._lock:
            pending = list(self._keys.items())
        for part in (pending[start : start + _KEYS_PER_TRIP] for start in range(0, len(pending), _KEYS_PER_TRIP)):
            if not self._tier.drop_many([key for key, _ in part]):
                return
            with self._lock:
                for key, mark in part:
                    if self._keys.get(key) is mark:
                        del self._keys[key]
