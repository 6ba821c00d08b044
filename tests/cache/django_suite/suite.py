"""Django's tests of locmem, against L1's backend. Run by `tests/cache/test_django_suite.py`.

Where they sleep until a value has expired, nobody waits: the clock that they, Django and the backend go by moves on.
"""

import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

from cache import tests as of_django  # type: ignore[import-not-found]  # Django's, see source.py
from django.core.cache.backends import base
from django.test import TestCase, override_settings

from mlserve.cache.tiers import l1_locmem
from tests.fixtures.clock import ManualClock

_MUTABLE = "stores an object that can change; L1 keeps references and refuses it with MutableValueError"
_PICKLE = "about pickling, which L1 does not do"
_CULL = "counts what locmem's culling at random leaves; L1 evicts one by one, by W-TinyLFU"
_INSIDE = "looks into locmem's own dictionaries"

SKIPPED: dict[str, str] = {
    "test_cache_read_for_model_instance": _MUTABLE,
    "test_cache_read_for_model_instance_with_deferred": _MUTABLE,
    "test_cache_write_for_model_instance_with_deferred": _MUTABLE,
    "test_cache_write_unpicklable_object": f"{_MUTABLE}; Django's cache middleware stores responses and lists",
    "test_data_types": f"{_MUTABLE}: a list, a dict, a function and a class among others",
    "test_unicode": f"{_MUTABLE}: a dict among others",
    "test_add_fail_on_pickleerror": _PICKLE,
    "test_set_fail_on_pickleerror": _PICKLE,
    "test_locking_on_pickle": _PICKLE,
    "test_cull": _CULL,
    "test_zero_cull": _CULL,
    "test_lru_get": _CULL,
    "test_lru_set": _CULL,
    "test_lru_incr": _CULL,
    "test_incr_decr_timeout": _INSIDE,
}
"""Each with the reason. All others must pass; what these hold apart from it is in `tests/cache/test_l1_backend.py`."""

_BACKEND = "mlserve.cache.tiers.l1_locmem.BoundedLocMemCache"


@override_settings(CACHES=of_django.caches_setting_for_tests(BACKEND=_BACKEND))
class L1CacheTests(of_django.LocMemCacheTests):
    def setUp(self) -> None:
        # Not locmem's, which joins the dictionaries of several backends: here they share a store by their location.
        TestCase.setUp(self)
        clock = ManualClock()
        module = SimpleNamespace(time=clock.now, sleep=clock.sleep)
        for place, name, stand_in in (
            (of_django, "time", module),
            (base, "time", module),
            (l1_locmem, "_clock", clock),
        ):
            self.enterContext(mock.patch.object(place, name, stand_in))

    @override_settings(
        CACHES={"default": {"BACKEND": _BACKEND}, "other": {"BACKEND": _BACKEND, "LOCATION": "other"}},
    )
    def test_multiple_caches(self) -> None:
        inner: Any = of_django.LocMemCacheTests.test_multiple_caches
        inner.__wrapped__(self)


for _name, _reason in SKIPPED.items():
    setattr(L1CacheTests, _name, unittest.skip(_reason)(getattr(L1CacheTests, _name)))
