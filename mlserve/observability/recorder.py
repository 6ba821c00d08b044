"""Counts what the engine does: appends and plain integers on the hot path, Prometheus once a second.

A Prometheus counter shared between processes costs a lock and a write to a mapped file each time, and a request
counts some twenty things. So each thread writes to a ledger of its own, which needs no lock because nobody else writes
to it, and a poller adds what has come to the metrics. A hit is one append of the age that was served to a list; counts
and histograms are made of the lists in bulk. Totals are exact; they are up to a second old.
"""

import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from weakref import finalize

import numpy as np
from prometheus_client import Histogram

from mlserve.cache.outcome import MissReason, Tier
from mlserve.observability import metrics

Counts = defaultdict[Hashable, float]
_AGE_EDGES = np.array(metrics.AGE_BUCKETS_S, dtype=float)
_LATE = "late"


class _Ledger:
    """What one thread has counted: `ages` of what was served, by tier and namespace, and everything else."""

    def __init__(self) -> None:
        self.counts: Counts = defaultdict(float)
        self.ages: dict[str, defaultdict[str, list[float]]] = {
            where: defaultdict(list) for where in (*(str(tier) for tier in Tier), _LATE)
        }

    def drain_ages(self, into: Counts) -> None:
        """Moves the ages into counts. The thread may append meanwhile: it appends behind what is taken here."""
        for where, by_namespace in self.ages.items():
            for namespace, ages in list(by_namespace.items()):
                taken = len(ages)
                if not taken:
                    continue
                values = np.array(ages[:taken])
                del ages[:taken]
                if where == _LATE:
                    into["late", namespace] += taken
                elif where in (Tier.L3, Tier.COMPUTED):
                    into["load", namespace] += taken
                else:
                    into["hit", where, namespace] += taken
                into["age_sum", namespace] += float(values.sum())
                buckets = np.bincount(np.searchsorted(_AGE_EDGES, values), minlength=1)
                for bucket in np.flatnonzero(buckets):
                    into["age", namespace, int(bucket)] += float(buckets[bucket])


class Recorder:
    """The engine's `Stats`. One per process; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_threads: list[_Ledger] = []
        self._of_ended_threads: deque[_Ledger] = deque()
        self._drained: Counts = defaultdict(float)
        self._published: Counts = defaultdict(float)
        self._mine = _OfThread(self._begin)

    def hits(self, tier: Tier) -> Mapping[str, list[float]]:
        return self._mine.ages[tier]

    def late(self) -> Mapping[str, list[float]]:
        return self._mine.ages[_LATE]

    def miss(self, tier: Tier, namespace: str, reason: MissReason) -> None:
        self._mine.counts["miss", tier, namespace, reason] += 1

    def latency(self, tier: Tier, namespaces: Iterable[str], seconds: float) -> None:
        counts, bucket = self._mine.counts, bisect_left(metrics.LATENCY_BUCKETS_S, seconds)
        for namespace in namespaces:
            counts["latency", tier, namespace, bucket] += 1
            counts["latency_sum", tier, namespace] += seconds

    def source_error(self, reason: str) -> None:
        self._mine.counts["source_error", reason] += 1

    def fill_refused(self, tier: Tier, reason: str, count: int) -> None:
        self._mine.counts["fill_refused", tier, reason] += count

    def stale(self, namespace: str) -> None:
        self._mine.counts["stale", namespace] += 1

    def defaulted(self, namespace: str) -> None:
        self._mine.counts["defaulted", namespace] += 1

    def event(self, what: str, count: int = 1) -> None:
        self._mine.counts["event", what] += count

    def score(self, decision: str, *, degraded: bool, cold_start: bool = False, seconds: float) -> None:
        """One score given, and how long it took without HTTP."""
        counts = self._mine.counts
        counts["score", decision, degraded] += 1
        if cold_start:
            counts["cold_start", decision] += 1
        counts["score_time", bisect_left(metrics.LATENCY_BUCKETS_S, seconds)] += 1
        counts["score_time_sum",] += seconds

    def totals(self) -> Counts:
        """All that has been counted so far, by what it is; not to be confused with what the metrics have seen."""
        with self._lock:
            return self._totals()

    def publish(self) -> None:
        """Add what was counted since the last call to the metrics."""
        with self._lock:
            for what, total in self._totals().items():
                growth = total - self._published[what]
                if growth:
                    _publish(what, growth)
                    self._published[what] = total

    def _totals(self) -> Counts:
        ended = self._take_ended_threads()
        for ledger in (*self._of_threads, *ended):
            ledger.drain_ages(self._drained)
        for ledger in ended:
            for what, count in ledger.counts.items():
                self._drained[what] += count
        totals = self._drained.copy()
        for ledger in self._of_threads:
            for what, count in ledger.counts.copy().items():
                totals[what] += count
        return totals

    def _begin(self, ledger: "_OfThread") -> None:
        """A thread counts for the first time."""
        with self._lock:
            self._of_threads.append(ledger.counted)
        # Runs when the thread ends, in whatever thread notices: it may only leave a note.
        finalize(ledger.end, self._of_ended_threads.append, ledger.counted)

    def _take_ended_threads(self) -> list[_Ledger]:
        """Servers start and end threads all the time; their counts must stay, their ledgers must not."""
        ended = []
        while self._of_ended_threads:
            ledger = self._of_ended_threads.popleft()
            self._of_threads = [held for held in self._of_threads if held is not ledger]
            ended.append(ledger)
        return ended


class _End:
    """Lives as long as the thread that it belongs to."""


class _OfThread(threading.local):
    """The ledger of the thread that looks: Python runs `__init__` once in each."""

    def __init__(self, begin: Callable[["_OfThread"], None]) -> None:
        self.counted = _Ledger()
        self.counts, self.ages = self.counted.counts, self.counted.ages
        self.end = _End()
        begin(self)


def _publish(what: Hashable, growth: float) -> None:
    match what:
        case ("hit", tier, namespace):
            metrics.CACHE_HITS.labels(tier, namespace).inc(growth)
        case ("miss", tier, namespace, reason):
            metrics.CACHE_MISSES.labels(tier, namespace, reason).inc(growth)
        case ("latency", tier, namespace, int(bucket)):
            _add_to_bucket(metrics.CACHE_LATENCY.labels(tier, namespace), bucket, growth)
        case ("latency_sum", tier, namespace):
            _add_to_sum(metrics.CACHE_LATENCY.labels(tier, namespace), growth)
        case ("late", namespace):
            metrics.CACHE_LATE.labels(namespace).inc(growth)
        case ("event", what):
            metrics.CACHE_EVENTS.labels(what).inc(growth)
        case ("load", namespace):
            metrics.SOURCE_LOADS.labels(namespace).inc(growth)
        case ("source_error", reason):
            metrics.SOURCE_ERRORS.labels(reason).inc(growth)
        case ("fill_refused", tier, reason):
            metrics.CACHE_WRITES_REFUSED.labels(tier, reason).inc(growth)
        case ("age", namespace, int(bucket)):
            _add_to_bucket(metrics.FEATURE_AGE.labels(namespace), bucket, growth)
        case ("age_sum", namespace):
            _add_to_sum(metrics.FEATURE_AGE.labels(namespace), growth)
        case ("stale", namespace):
            metrics.FEATURES_STALE.labels(namespace).inc(growth)
        case ("defaulted", namespace):
            metrics.FEATURES_DEFAULTED.labels(namespace).inc(growth)
        case ("score", decision, bool(degraded)):
            metrics.SCORES.labels(decision, "true" if degraded else "false").inc(growth)
        case ("cold_start", decision):
            metrics.SCORES_COLD_START.labels(decision).inc(growth)
        case ("score_time", int(bucket)):
            _add_to_bucket(metrics.SCORE_LATENCY, bucket, growth)
        case ("score_time_sum",):
            _add_to_sum(metrics.SCORE_LATENCY, growth)
        case _:
            raise ValueError(f"nobody publishes {what!r}")


# prometheus-client has no public way to add many observations at once; a test compares these with `observe`.
def _add_to_bucket(histogram: Histogram, bucket: int, count: float) -> None:
    histogram._buckets[bucket].inc(count)


def _add_to_sum(histogram: Histogram, amount: float) -> None:
    histogram._sum.inc(amount)
