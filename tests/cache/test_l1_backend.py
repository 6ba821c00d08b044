"""L1 as a Django cache backend: what Django's own tests, which run in `test_django_suite.py`, do not say."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from mlserve.cache.tiers.l1_locmem import BoundedLocMemCache, MutableValueError, forget_stores


@pytest.fixture
def location() -> Iterator[str]:
    name = f"test-{uuid4()}"
    yield name
    forget_stores(name)


@pytest.fixture
def cache(location: str) -> BoundedLocMemCache:
    return BoundedLocMemCache(location, {"OPTIONS": {"MAX_ENTRIES": 100, "MAX_BYTES": 100_000}})


class _Frozen(msgspec.Struct, frozen=True):
    part: Any


class _Thawed(msgspec.Struct):
    part: Any


@dataclass(frozen=True)
class _FrozenDataclass:
    part: int


@pytest.mark.parametrize(
    "value",
    [
        *("text", b"bytes", 1, 1.5, 2j, True, None, Decimal("0.1")),
        *(date(2024, 2, 29), datetime(2024, 2, 29, tzinfo=UTC), timedelta(1), UUID(int=1)),
        *((), (1, ("two", b"3")), frozenset({1, (2, 3)}), _Frozen(1), _Frozen((_Frozen("x"),))),
        *("nul\x00", "ключ", "\ud800"),
    ],
    ids=repr,
)
def test_what_cannot_change_comes_back_as_the_same_object(value: Any, cache: BoundedLocMemCache) -> None:
    """By reference: no copy, no pickling."""
    cache.set("key", value)
    assert cache.get("key", "default") is value
    assert cache.has_key("key")


@pytest.mark.parametrize(
    "value",
    [
        *([], {}, set(), bytearray(b"x"), object(), len, int),
        *((1, []), frozenset({(1, object())}), _Thawed(1), _Frozen([]), _Frozen(_Thawed(1)), _FrozenDataclass(1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_change_is_refused(value: Any, cache: BoundedLocMemCache) -> None:
    """With the type and what to use instead, at whatever depth; what was held stays."""
    cache.set("key", "held")
    with pytest.raises(MutableValueError, match=r"immutable values only, not .*: use a tuple, a frozenset, bytes"):
        cache.set("key", value)
    with pytest.raises(MutableValueError):
        cache.add("other", value)
    assert (cache.get("key"), cache.get("other")) == ("held", None)


def test_aliases_of_one_location_share_what_they_bound_alike(location: str) -> None:
    """Other bounds are another store, and neither replaces the other."""
    alike = [BoundedLocMemCache(location, {"OPTIONS": {"MAX_ENTRIES": 10}}) for _ in range(2)]
    other = BoundedLocMemCache(location, {"OPTIONS": {"MAX_ENTRIES": 20}})
    alike[0].set("key", 1)
    assert (alike[1].get("key"), other.get("key")) == (1, None)
    assert BoundedLocMemCache(location, {"OPTIONS": {"MAX_ENTRIES": 10}}).store is alike[0].store


def test_the_backend_keeps_to_its_bounds(cache: BoundedLocMemCache) -> None:
    """In entries and in bytes, whatever is put; a value larger than the store is not held."""
    for number in range(500):
        cache.set(f"key{number}", "x" * (number * 7 % 3_000))
        assert len(cache.store) <= 100 and cache.store.weight_bytes <= 100_000
    cache.set("key", "x" * 100_001)
    assert cache.get("key") is None


def test_a_forked_child_begins_with_an_empty_memory(cache: BoundedLocMemCache) -> None:
    """It did not hear of what was invalidated before it was there. Through a backend of its parent's as well, and
    whoever was at work in the parent's memory at that moment."""
    cache.set("key", 1)
    with cache.store._lock:
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if cache.get("key") is None and cache.add("key", 2) and cache.get("key") == 2 else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cache.get("key") == 1
