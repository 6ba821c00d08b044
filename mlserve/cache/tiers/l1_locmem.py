"""L1: this process's memory, as a Django cache backend and as a tier of the engine, over one bounded store.

Django's `LocMemCache` pickles every value on every get and culls a third of its keys at once when it is full. Here
the object itself is kept, by reference; so only values that cannot change are accepted, and a full store pushes out
one by one what is asked for least (`tinylfu.py`). It is bounded by entries and by bytes: an entry weighs its size, but
at least MAX_BYTES / MAX_ENTRIES.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

import msgspec
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from mlserve.cache.chain import NEVER_BEGUN, Chain, NullChain
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import Found
from mlserve.cache.tinylfu import TinyLfuStore

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


class BoundedStore(TinyLfuStore):
    """The memory of one alias in this process: entries of the engine, or values of Django's cache API."""

    def __init__(self, max_entries: int, max_bytes: int, *, random_source: Random | None = None) -> None:
        super().__init__(max_entries, max_bytes, weigh=_weight_of, random_source=random_source)

    def put_newer(self, key: Key, entry: Entry) -> None:
        """Unless an entry with a larger version is held; look and write are one step."""
        with self._lock:
            held = self.peek(key)
            if held is None or held.version <= entry.version:
                self._put(key, entry)

    def drop_older(self, key: Key, version: int) -> None:
        held = self.peek(key)
        if held is not None and held.version < version:
            self.pop(key)

    def drop_all(self, is_concerned: Callable[[Key], bool]) -> None:
        """Of the engine's entries; Django's values stay."""
        for key in list(self._nodes):
            if isinstance(key, Key) and is_concerned(key):
                self.pop(key)


_stores: dict[tuple[str, int, int], BoundedStore] = {}
_stores_lock = threading.Lock()


def store_of(location: str, max_entries: int, max_bytes: int) -> BoundedStore:
    """The store behind a location; Django makes a backend object per thread, the memory is the process's.

    Aliases that share a location share the store only if they bound it alike.
    """
    with _stores_lock:
        store = _stores.get((location, max_entries, max_bytes))
        if store is None:
            store = _stores[location, max_entries, max_bytes] = BoundedStore(max_entries, max_bytes)
        return store


def forget_stores(location: str) -> None:
    """Backends that have one keep it; the next backend of this location starts with an empty one."""
    with _stores_lock:
        for bounds in [bounds for bounds in _stores if bounds[0] == location]:
            del _stores[bounds]


def _forget_after_fork() -> None:
    """A child must not serve what it never heard invalidations for.

    In place: the backends that the forking thread has already been given are the child's as well.
    """
    global _stores_lock
    _stores_lock = threading.Lock()
    for store in _stores.values():
        store.begin_anew()


os.register_at_fork(after_in_child=_forget_after_fork)


def _weight_of(value: Any) -> int:
    if isinstance(value, Entry):
        return value.size_bytes
    return _size_of(value.value) + _FLAT_BYTES


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
    """The engine's view of the store: decoded entries by key, no serialisation, no prefixing.

    `chain`: what is heard of L2's batches (`chain.py`). It takes out what has changed, and vouches for the rest.
    """

    tier = Tier.L1

    def __init__(self, store: BoundedStore, chain: Chain | NullChain | None = None) -> None:
        self.store = store
        self.chain = chain or NullChain()
        self.begin = self.chain.begin
        self.get, self.peek, self.why_missing = store.get, store.peek, store.why_missing

    @property
    def vouched_at(self) -> float:
        return self.chain.vouched_at

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        return {key: self._found(key, self.store.get, policies[key.group]) for key in keys}

    def peek_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        return {key: self._found(key, self.store.peek, policies[key.group]) for key in keys}

    def _found(self, key: Key, look: Callable[[Key], Entry | None], policy: Policy) -> Entry | MissReason:
        # Asked before the look: whatever is heard afterwards says nothing about the copy that is found now.
        vouched_at = self.chain.vouched_of(key) if policy.proven else 0.0
        entry = look(key)
        if entry is None:
            return self.store.why_missing(key)
        if 0.0 < entry.vouched_at < vouched_at:
            return msgspec.structs.replace(entry, vouched_at=vouched_at)
        return entry

    def put_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], *, since: int = NEVER_BEGUN
    ) -> bool:
        for key, entry in entries.items():
            self.chain.admit(key, entry.version, since, partial(self.store.put_newer, key, entry))
        return True

    def drop_many(self, keys: Sequence[Key]) -> bool:
        for key in keys:
            self.store.pop(key)
        return True
