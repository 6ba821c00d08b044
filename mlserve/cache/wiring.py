"""Puts the engine together: the only module that reads settings and names concrete tiers.

One engine per process, built at first use, dropped when settings change and after a fork: sockets, threads and
copies of the parent are not the child's.
"""

import os
import random
import threading
from typing import Any

import redis
from django.conf import settings
from django.core.cache import caches
from django.core.signals import setting_changed
from django.db import DatabaseError, InterfaceError, connection
from django_redis import get_redis_connection

from mlserve.cache.breaker import Breaker, State
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade
from mlserve.cache.clock import SystemClock
from mlserve.cache.filler import Filler
from mlserve.cache.hotkeys import HotKeyCounter
from mlserve.cache.invalidation import PendingInvalidations
from mlserve.cache.outcome import Tier
from mlserve.cache.tiers.l1_locmem import BoundedLocMemCache, L1Tier
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.observability import metrics
from mlserve.observability.recorder import Recorder
from mlserve.patience import answer_within
from mlserve.poller import Poller

PUBLISH_INTERVAL_S = 1.0
PROBE_INTERVAL_S = 0.1
PROBE_PATIENCE_S = 1.0


class Engine:
    """The cache of this process."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.recorder = Recorder()
        self.hot_keys = HotKeyCounter()
        self.l2_breaker = Breaker("l2", self.clock, random_source=random.Random())
        self.l3_breaker = Breaker("l3", self.clock, random_source=random.Random())
        l1_cache = caches["l1"]
        assert isinstance(l1_cache, BoundedLocMemCache), "CACHES['l1'] must be the project's backend (mlserve.E004)"
        self.l1 = L1Tier(l1_cache.store)
        self.l2 = L2Tier(l2_client, self.l2_breaker, self.recorder)
        self.pending = PendingInvalidations(self.l2)
        self.filler = Filler(self.l2, self.recorder)
        self.features = Cascade(
            l1=self.l1, l2=self.l2, filler=self.filler, stats=self.recorder, clock=self.clock, source_tier=Tier.L3
        )
        self.predictions = Cascade(
            l1=self.l1, l2=self.l2, filler=self.filler, stats=self.recorder, clock=self.clock, source_tier=Tier.COMPUTED
        )
        self._budget_s = settings.CACHE_BUDGET_MS / 1000
        self._evictions_published = 0
        self._opened_published = {"l2": 0, "l3": 0}
        self._publisher = Poller("cache-publisher", PUBLISH_INTERVAL_S, self.publish)
        # Two, because a probe of Postgres may wait for seconds.
        self._probers = (
            Poller("l2-prober", PROBE_INTERVAL_S, self._probe_l2),
            Poller("l3-prober", PROBE_INTERVAL_S, self._probe_l3),
        )

    def budget(self) -> Budget:
        """A new request's budget."""
        return Budget(self.clock, self._budget_s)

    def start(self) -> None:
        """Start the pollers of this process; idempotent."""
        self._publisher.ensure_started()
        for prober in self._probers:
            prober.ensure_started()

    def stop(self) -> None:
        self._publisher.stop()
        for prober in self._probers:
            prober.stop()

    def publish(self) -> None:
        """Add this process's figures to the shared ones."""
        self.recorder.publish()
        store = self.l1.store
        metrics.L1_ENTRIES.set(len(store))
        metrics.L1_BYTES.set(store.weight_bytes)
        evictions = store.evictions
        metrics.CACHE_EVICTIONS.labels(Tier.L1).inc(max(0, evictions - self._evictions_published))
        self._evictions_published = evictions
        for breaker in (self.l2_breaker, self.l3_breaker):
            metrics.BREAKER_OPEN.labels(breaker.name).set(breaker.state.value)
            metrics.BREAKER_OPENED.labels(breaker.name).inc(breaker.opened_count - self._opened_published[breaker.name])
            self._opened_published[breaker.name] = breaker.opened_count
        if self.l2_breaker.state is State.CLOSED:
            try:
                self.hot_keys.publish(l2_client(), now=self.clock.now())
            except redis.RedisError:
                self.l2_breaker.failure(timed_out=False)

    def _probe_l2(self) -> None:
        if self.l2_breaker.state is State.CLOSED:
            self.pending.retry()
        elif self.l2_breaker.allow_probe():
            if len(self.pending):
                # As the probe: the copies that must go are gone before the breaker lets readers in again.
                self.pending.retry()
            else:
                self.l2.ping()

    def _probe_l3(self) -> None:
        if not self.l3_breaker.allow_probe():
            return
        try:
            with answer_within(PROBE_PATIENCE_S), connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except (DatabaseError, InterfaceError):
            connection.close()
            self.l3_breaker.failure(timed_out=True)
        else:
            self.l3_breaker.success()


def l2_client() -> "redis.Redis":
    """The redis-py client under the `l2` alias: pool, timeouts and Sentinel are django-redis' matter."""
    return get_redis_connection("l2")


_lock = threading.Lock()
_engine: Engine | None = None


def engine() -> Engine:
    """The engine of this process, started."""
    if _engine is None:
        _build()
    assert _engine is not None
    return _engine


def _build() -> None:
    global _engine
    with _lock:
        if _engine is None:
            built = Engine()
            built.start()
            _engine = built


def reset() -> None:
    """Drop the engine with all that it holds in this process."""
    global _engine
    with _lock:
        if _engine is not None:
            _engine.stop()
            _engine.l1.store.clear()
        _engine = None


def _forget_after_fork() -> None:
    global _engine, _lock
    _engine, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)


def _on_setting_changed(*, setting: str, **_: Any) -> None:
    if setting in ("CACHES", "CACHE_BUDGET_MS"):
        reset()


setting_changed.connect(_on_setting_changed, dispatch_uid="mlserve.cache.wiring")
