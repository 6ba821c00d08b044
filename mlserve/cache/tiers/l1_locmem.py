"""L1: this process's memory, as a Django cache backend and as a tier of the engine, over one bounded store.

Django's `LocMemCache` pickles every value on every get and culls a third of its keys at once when it is full. Here
the object itself is kept, by reference; so only values that cannot change are accepted, and a full store pushes out
the least recently used one by one. One weight bounds both entries and bytes: an entry weighs its size, but at least
MAX_BYTES / MAX_ENTRIES.
"""

import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import cachebox
import msgspec
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import Found

_IMMUTABLE = (str, bytes, int, float, complex, bool, type(None), Decimal, date, datetime, timedelta, UUID)
_FLAT_BYTES = 100
_clock = SystemClock()
"""Django gives a backend its settings and no clock; `get_backend_timeout` reads the same one."""


class MutableValueError(TypeError):
    """L1 hands out the object that it was given; one that can change would change under every reader."""


class Held(msgspec.Struct, frozen=True):
    """A value of Django's cache API with its end (s, `time.time`), None for ever."""

    value: Any
    expires_at: float | None


class BoundedStore:
    """The memory of one alias in this process. Thread-safe; reads take no lock of ours."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self._least_weight = max(1, max_bytes // max_entries)
        self._lock = threading.Lock()
        self._inserted = 0
        self._removed = 0
        self._map: cachebox.LRUCache[Hashable, Any] = cachebox.LRUCache(max_bytes, getsizeof=self._weight)
        self.get = self._map.get
        self.peek = self._map.peek

    def _weight(self, key: Hashable, value: Any) -> int:
        if isinstance(value, Entry):
            return max(self._least_weight, value.size_bytes)
        return max(self._least_weight, _size_of(value.value) + _FLAT_BYTES)

    def put(self, key: Hashable, value: Any) -> bool:
        """False if the value is too large to be held at all; then nothing is held under this key."""
        with self._lock:
            return self._insert(key, value)

    def put_newer(self, key: Key, entry: Entry) -> None:
        """Unless an entry with a larger version is held; look and write are one step."""
        with self._lock:
            held = self._map.peek(key)
            if held is None or held.version <= entry.version:
                self._insert(key, entry)

    def _insert(self, key: Hashable, value: Any) -> bool:
        try:
            if self._map.insert(key, value) is None:
                self._inserted += 1
        except OverflowError:  # larger than the whole store
            self._removed += self._map.pop(key, None) is not None
            return False
        return True

    def pop(self, key: Hashable) -> Any:
        with self._lock:
            value = self._map.pop(key, None)
            if value is not None:
                self._removed += 1
            return value

    def clear(self) -> None:
        with self._lock:
            self._removed += len(self._map)
            self._map.clear()

    def __len__(self) -> int:
        return len(self._map)

    @property
    def weight_bytes(self) -> int:
        return int(self._map.current_size())

    @property
    def evictions(self) -> int:
        """How many entries newer ones have pushed out so far."""
        with self._lock:
            return max(0, self._inserted - self._removed - len(self._map))


_stores: dict[str, BoundedStore] = {}
_stores_lock = threading.Lock()


def store_of(location: str, max_entries: int, max_bytes: int) -> BoundedStore:
    """The store behind a cache alias; Django makes a backend object per thread, the memory is the process's."""
    with _stores_lock:
        store = _stores.get(location)
        if store is None or (store.max_entries, store.max_bytes) != (max_entries, max_bytes):
            store = _stores[location] = BoundedStore(max_entries, max_bytes)
        return store


def _forget_after_fork() -> None:
    """A child must not serve what it never heard invalidations for."""
    _stores.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _size_of(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, tuple | frozenset):
        return sum(_size_of(part) + 16 for part in value)
    return 32


def _refuse_mutable(value: Any) -> None:
    if isinstance(value, tuple | frozenset):
        for part in value:
            _refuse_mutable(part)
    elif isinstance(value, msgspec.Struct) and value.__struct_config__.frozen:
        for field in value.__struct_fields__:
            _refuse_mutable(getattr(value, field))
    elif not isinstance(value, _IMMUTABLE):
        raise MutableValueError(
            f"L1 keeps objects by reference and so takes immutable values only, not {type(value).__name__}: "
            "use a tuple, a frozenset, bytes or a frozen msgspec.Struct"
        )


class BoundedLocMemCache(BaseCache):
    """locmem's API over a `BoundedStore`. OPTIONS: MAX_ENTRIES, MAX_BYTES."""

    def __init__(self, name: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = params.get("OPTIONS", {})
        self.store = store_of(
            name, int(options.get("MAX_ENTRIES", 100_000)), int(options.get("MAX_BYTES", 256 * 1024 * 1024))
        )

    def _live(self, key: str, version: int | None) -> tuple[str, Held | None]:
        name = self.make_and_validate_key(key, version=version)
        held = self.store.get(name)
        if held is not None and held.expires_at is not None and held.expires_at <= _clock.now():
            self.store.pop(name)
            held = None
        return name, held

    def _hold(self, name: str, value: Any, timeout: Any) -> None:
        _refuse_mutable(value)
        expires_at = self.get_backend_timeout(timeout)
        if expires_at is not None and expires_at <= _clock.now():
            self.store.pop(name)
        else:
            self.store.put(name, Held(value, expires_at))

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        _name, held = self._live(key, version)
        return default if held is None else held.value

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self._hold(self.make_and_validate_key(key, version=version), value, timeout)

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name, held = self._live(key, version)
        if held is not None:
            return False
        self._hold(name, value, timeout)
        return True

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name, held = self._live(key, version)
        if held is None:
            return False
        self._hold(name, held.value, timeout)
        return True

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        name, held = self._live(key, version)
        if held is None:
            raise ValueError(f"Key '{key}' not found")
        value = int(held.value) + delta
        self.store.put(name, Held(value, held.expires_at))
        return value

    def has_key(self, key: str, version: int | None = None) -> bool:
        return self._live(key, version)[1] is not None

    def delete(self, key: str, version: int | None = None) -> bool:
        return self.store.pop(self.make_and_validate_key(key, version=version)) is not None

    def clear(self) -> None:
        self.store.clear()


class L1Tier:
    """The engine's view of the store: decoded entries by key, no serialisation, no prefixing."""

    tier = Tier.L1

    def __init__(self, store: BoundedStore) -> None:
        self.store = store

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        get = self.store.get
        return {key: get(key, MissReason.COLD) for key in keys}

    def peek_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        peek = self.store.peek
        return {key: peek(key, MissReason.COLD) for key in keys}

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        for key, entry in entries.items():
            self.store.put_newer(key, entry)
        return True

    def drop_many(self, keys: Sequence[Key]) -> bool:
        for key in keys:
            self.store.pop(key)
        return True
