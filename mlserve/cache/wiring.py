"""Puts the engine together: the only module that reads settings and names concrete tiers.

One engine per process, built at first use, dropped when settings change and after a fork: sockets, threads and
copies of the parent are not the child's.
"""

import os
import platform
import random
import threading
from collections.abc import Callable
from typing import Any

import redis
from django.conf import settings
from django.core.cache import caches
from django.core.signals import setting_changed
from django.db import DatabaseError, InterfaceError, connection
from django_redis import get_redis_connection
from redis.exceptions import RedisClusterException

from mlserve.cache.breaker import Breaker, State
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade
from mlserve.cache.chain import Chain
from mlserve.cache.clock import SystemClock
from mlserve.cache.filler import Filler
from mlserve.cache.hotkeys import HotKeyCounter, HotReplicas, read_hot_keys
from mlserve.cache.inquiry import Answer, Question, answers
from mlserve.cache.invalidation import Everywhere, PendingInvalidations
from mlserve.cache.keys import PREDICTION, Key, names_of
from mlserve.cache.limiter import ConcurrencyLimiter
from mlserve.cache.loading import CoordinatedLoading, DirectLoading
from mlserve.cache.negatives import NegativeQuota
from mlserve.cache.outcome import Tier
from mlserve.cache.refresher import Refresher
from mlserve.cache.seal import make_seal
from mlserve.cache.singleflight import Flights
from mlserve.cache.tiers.bus_tail import POLL_S as BUS_POLL_S
from mlserve.cache.tiers.bus_tail import BusTail
from mlserve.cache.tiers.cluster import make_wire
from mlserve.cache.tiers.l1_locmem import BoundedLocMemCache, L1Tier
from mlserve.cache.tiers.l2_redis import REPLICAS, L2Tier
from mlserve.observability import metrics
from mlserve.observability.recorder import Recorder
from mlserve.poller import Poller
from mlserve.postgres import probe

PUBLISH_INTERVAL_S = 1.0
PROBE_INTERVAL_S = 0.1
L3_WAIT_S = 0.25
"""For a place among the reads of Postgres; as long as a couple of hundred reads take."""
HOT_ENTITIES = 200
"""Looked at once a second for those that are worth copies on several nodes."""


class Engine:
    """The cache of this process."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.seal = make_seal(settings.CACHE_MAC_KEY)
        self.recorder = Recorder()
        self.hot_keys = HotKeyCounter()
        self.hot_replicas = HotReplicas(REPLICAS, place=os.getpid())
        self.l3_breaker = self._new_breaker("l3")
        self.l3_write_breaker = self._new_breaker("l3_writes")
        """Of its own: a PostgreSQL that takes no writes still answers reads."""
        self.l3_limiter = ConcurrencyLimiter(settings.L3_MAX_READS, wait_s=L3_WAIT_S)
        l1_cache = caches["l1"]
        assert isinstance(l1_cache, BoundedLocMemCache), "CACHES['l1'] must be the project's backend (mlserve.E004)"
        self.chain = Chain(
            l1_cache.store, partitions=settings.CACHE_PARTITIONS, partition_of=_partition_of, clock=self.clock
        )
        self.l1 = L1Tier(l1_cache.store, self.chain)
        self.wire = make_wire("l2", new_breaker=self._new_breaker, clock=self.clock)
        self.l2 = L2Tier(
            self.wire,
            self.recorder,
            partitions=settings.CACHE_PARTITIONS,
            replica_of=self.hot_replicas.replica_of,
            heads=lambda: self.chain.heads,
            seal=self.seal,
        )
        # With a breaker of its own: whether the stream can be read is no judgement on look-ups.
        self.bus = BusTail(
            chain=self.chain,
            wire=make_wire("l2", new_breaker=self._new_breaker, clock=self.clock),
            partitions=settings.CACHE_PARTITIONS,
            answer=self._answer,
            seal=self.seal,
        )
        self.pending = PendingInvalidations(Everywhere(self.l2, self.bus))
        self.filler = Filler(self.l2, self.recorder)
        self.negatives = NegativeQuota(self.clock, settings.CACHE_MAX_NEGATIVES)
        self.refresher = Refresher(l1=self.l1, l2=self.l2, stats=self.recorder, clock=self.clock)
        self.flights = Flights()
        self.loading = CoordinatedLoading(
            l2=self.l2,
            filler=self.filler,
            negatives=self.negatives,
            stats=self.recorder,
            clock=self.clock,
            source_tier=Tier.L3,
        )
        self.features = Cascade(
            l1=self.l1,
            l2=self.l2,
            loading=self.loading,
            stats=self.recorder,
            clock=self.clock,
            source_tier=Tier.L3,
            refresher=self.refresher,
            flights=self.flights,
        )
        self.predictions = Cascade(
            l1=self.l1,
            l2=self.l2,
            loading=DirectLoading(filler=self.filler, stats=self.recorder, source_tier=Tier.COMPUTED),
            stats=self.recorder,
            clock=self.clock,
            source_tier=Tier.COMPUTED,
        )
        self._budget_s = settings.CACHE_BUDGET_MS / 1000
        self._published: dict[str, int] = {}
        self._publisher = Poller("cache-publisher", PUBLISH_INTERVAL_S, self.publish)
        self._follower = Poller("cache-bus", BUS_POLL_S, self.bus.poll)
        # Several, because a probe of Postgres may wait for seconds.
        self._probers = (
            Poller("l2-prober", PROBE_INTERVAL_S, self._probe_l2),
            Poller("l3-prober", PROBE_INTERVAL_S, lambda: _probe(self.l3_breaker, probe.read)),
            Poller("l3-write-prober", PROBE_INTERVAL_S, lambda: _probe(self.l3_write_breaker, probe.write)),
        )

    def _new_breaker(self, name: str) -> Breaker:
        return Breaker(name, self.clock, random_source=random.Random())

    @property
    def l2_breaker(self) -> Breaker:
        """The breaker of the one server; in a Cluster, the one of the nodes that is worst off."""
        return max(self.wire.breakers.values(), key=lambda breaker: breaker.state.value)

    def budget(self) -> Budget:
        """A new request's budget."""
        return Budget(self.clock, self._budget_s)

    def start(self) -> None:
        """Start the pollers of this process; idempotent."""
        self._publisher.ensure_started()
        self._follower.ensure_started()
        for prober in self._probers:
            prober.ensure_started()

    def stop(self) -> None:
        self._publisher.stop()
        self._follower.stop()
        for prober in self._probers:
            prober.stop()

    def publish(self) -> None:
        """Add this process's figures to the shared ones."""
        self.recorder.publish()
        store = self.l1.store
        metrics.L1_ENTRIES.set(len(store))
        metrics.L1_BYTES.set(store.weight_bytes)
        metrics.L3_IN_USE.set(self.l3_limiter.in_use)
        for namespace, evictions in list(store.evictions_of.items()):
            self._add(metrics.CACHE_EVICTIONS.labels(Tier.L1, namespace), f"evicted {namespace}", evictions)
        self._add(metrics.CHAIN_GAPS, "chain_gaps", self.chain.gaps)
        for refusal, refused in list(self.chain.refused.items()):
            self._add(metrics.CACHE_WRITES_REFUSED.labels(Tier.L1, refusal), f"refused {refusal}", refused)
        self._add(metrics.L3_REFUSED, "l3_refused", self.l3_limiter.refused)
        self._add(metrics.L2_OVERSIZED, "oversized", self.l2.oversized_removed)
        for breaker in (*self.wire.breakers.values(), self.l3_breaker, self.l3_write_breaker):
            metrics.BREAKER_OPEN.labels(breaker.name).set(breaker.state.value)
            self._add(metrics.BREAKER_OPENED.labels(breaker.name), f"opened {breaker.name}", breaker.opened_count)
        self._share_hot_keys()

    def _add(self, counter: Any, name: str, total: int) -> None:
        """What a total has grown by since the last time."""
        counter.inc(max(0, total - self._published.get(name, 0)))
        self._published[name] = total

    def _share_hot_keys(self) -> None:
        if self.l2_breaker.state is not State.CLOSED:
            return
        now = self.clock.now()
        try:
            self.hot_keys.publish(l2_client(), now=now)
            if settings.CACHE_PARTITIONS > 1:
                self.hot_replicas.choose(read_hot_keys(l2_client(), limit=HOT_ENTITIES, now=now))
        except (redis.RedisError, RedisClusterException):
            pass  # the wire's own look-ups find out whether a node is away

    def _answer(self, question: Question) -> Answer:
        now = self.clock.now()
        held = answers(self.l1.store.peek, question.keys, vouched_of=self.chain.vouched_of)
        return Answer(f"{platform.node()}:{os.getpid()}", now, held)

    def _probe_l2(self) -> None:
        self.l2.probe()
        self.pending.retry()


def _probe(breaker: Breaker, ask: Callable[[], None]) -> None:
    if not breaker.allow_probe():
        return
    try:
        ask()
    except (DatabaseError, InterfaceError):
        connection.close()
        breaker.failure(timed_out=True)
    else:
        breaker.success()


def _partition_of(key: Key) -> int | None:
    """None for predictions, which nothing ever withdraws: their keys name what they were computed from."""
    if key.kind == PREDICTION:
        return None
    return names_of(key.kind, key.id, settings.CACHE_PARTITIONS).partition


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


_BUILT_FROM = ("CACHES", "CACHE_BUDGET_MS", "CACHE_PARTITIONS", "CACHE_MAC_KEY", "CACHE_MAX_NEGATIVES", "L3_MAX_READS")


def _on_setting_changed(*, setting: str, **_: Any) -> None:
    if setting in _BUILT_FROM:
        reset()


setting_changed.connect(_on_setting_changed, dispatch_uid="mlserve.cache.wiring")
