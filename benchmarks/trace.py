"""`manage.py bench l1 --trace FILE`: how often L1 would hit on a recorded stream of keys, with LRU beside it.

Every line of the file is a key. It is looked up in the real backend and put on a miss. Nothing is timed: the result
says something about the keys and the eviction, and nothing about the machine.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from django.core.cache import CacheKeyWarning

from mlserve.cache.tiers.l1_locmem import BoundedLocMemCache, forget_stores

MOST_CAPACITY = 10_000_000
"""Its counters alone take a tenth of a gigabyte."""
_MOST_LINE_BYTES = 65_536
_ENTRY_BYTES = 1_024
"""More than an entry of the replay weighs: the bound in entries is the one that is felt."""


class TraceError(Exception):
    """The file is no trace; the message says where."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a trace. Rates are shares of the requests."""

    capacity: int
    requests: int
    hits: int
    lru_hits: int

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests

    @property
    def lru_hit_rate(self) -> float:
        return self.lru_hits / self.requests

    @property
    def difference_points(self) -> float:
        """Percentage points that L1 is ahead of LRU."""
        return 100 * (self.hit_rate - self.lru_hit_rate)


def replay(path: Path, *, capacity: int) -> Replay:
    """Read the file once, line by line, through both. Raises `TraceError`."""
    l1, lru = _L1(capacity), _Lru(capacity)
    requests = hits = lru_hits = 0
    try:
        with warnings.catch_warnings():
            # Django warns of keys that memcached would not take; a trace may hold any text.
            warnings.simplefilter("ignore", CacheKeyWarning)
            for key in _keys(path):
                requests += 1
                hits += l1.ask(key)
                lru_hits += lru.ask(key)
    finally:
        l1.close()
    if not requests:
        raise TraceError(f"{path}: no keys in it; a trace has one on each line")
    return Replay(capacity=capacity, requests=requests, hits=hits, lru_hits=lru_hits)


def as_json(result: Replay) -> dict[str, int | float]:
    return {
        "capacity": result.capacity,
        "requests": result.requests,
        "hits": result.hits,
        "hit_rate": result.hit_rate,
        "lru_hits": result.lru_hits,
        "lru_hit_rate": result.lru_hit_rate,
        "difference_points": result.difference_points,
    }


def as_text(result: Replay) -> str:
    return (
        f"{result.requests:,} requests, capacity {result.capacity:,} entries\n"
        f"l1   {result.hits:>12,} hits  {result.hit_rate:8.2%}\n"
        f"lru  {result.lru_hits:>12,} hits  {result.lru_hit_rate:8.2%}\n"
        f"difference {result.difference_points:+.2f} points"
    )


def _keys(path: Path) -> Iterator[str]:
    """Lines that are not empty, without their ends."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_MOST_LINE_BYTES + 1):
                number += 1
                if len(line) > _MOST_LINE_BYTES:
                    raise TraceError(f"{path}: line {number} is longer than {_MOST_LINE_BYTES:,} bytes")
                try:
                    key = line.rstrip(b"\r\n").decode()
                except UnicodeDecodeError as error:
                    raise TraceError(f"{path}: line {number} is not UTF-8 ({error.reason})") from error
                if key:
                    yield key
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error


class _L1:
    """Django's get, and set on a miss, on a store of its own."""

    def __init__(self, capacity: int) -> None:
        self._location = f"trace-{uuid4()}"
        options = {"MAX_ENTRIES": capacity, "MAX_BYTES": capacity * _ENTRY_BYTES}
        self._cache = BoundedLocMemCache(self._location, {"TIMEOUT": None, "OPTIONS": options})

    def ask(self, key: str) -> bool:
        if self._cache.get(key) is not None:
            return True
        self._cache.set(key, True)
        return False

    def close(self) -> None:
        forget_stores(self._location)


class _Lru:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[str, None] = OrderedDict()

    def ask(self, key: str) -> bool:
        if key in self._held:
            self._held.move_to_end(key)
            return True
        self._held[key] = None
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return False
