"""Counts what the engine does: plain integers on the hot path, Prometheus once a second.

A Prometheus counter shared between processes costs a lock and a write to a mapped file each time, and a request
counts some twenty things. So each thread adds to a dictionary of its own, which needs no lock because nobody else
writes to it, and a poller adds the growth of all of them to the metrics. Totals are exact; they are up to a second old.
"""

import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Hashable
from weakref import finalize

from prometheus_client import Histogram

from mlserve.cache.outcome import MissReason, Tier
from mlserve.observability import metrics

Counts = defaultdict[Hashable, float]


class Recorder:
    """The engine's `Stats`. One per process; thread-safe."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._of_threads: list[Counts] = []
        self._of_ended_threads: deque[Counts] = deque()
        self._ended: Counts = defaultdict(float)
        self._published: Counts = defaultdict(float)

    def hit(self, tier: Tier, namespace: str) -> None:
        self._counts()["hit", tier, namespace] += 1

    def miss(self, tier: Tier, namespace: str, reason: MissReason) -> None:
        self._counts()["miss", tier, namespace, reason] += 1

    def latency(self, tier: Tier, seconds: float) -> None:
        counts = self._counts()
        counts["latency", tier, bisect_left(metrics.LATENCY_BUCKETS_S, seconds)] += 1
        counts["latency_sum", tier] += seconds

    def load(self, namespace: str, count: int) -> None:
        self._counts()["load", namespace] += count

    def source_error(self, reason: str) -> None:
        self._counts()["source_error", reason] += 1

    def fill_refused(self, tier: Tier, reason: str, count: int) -> None:
        self._counts()["fill_refused", tier, reason] += count

    def served(self, namespace: str, age_s: float | None, *, stale: bool) -> None:
        counts = self._counts()
        if age_s is None:
            counts["defaulted", namespace] += 1
            return
        counts["age", namespace, bisect_left(metrics.AGE_BUCKETS_S, age_s)] += 1
        counts["age_sum", namespace] += age_s
        if stale:
            counts["stale", namespace] += 1

    def score(self, decision: str, *, degraded: bool, seconds: float) -> None:
        """One score given, and how long it took without HTTP."""
        counts = self._counts()
        counts["score", decision, degraded] += 1
        counts["score_time", bisect_left(metrics.LATENCY_BUCKETS_S, seconds)] += 1
        counts["score_time_sum",] += seconds

    def publish(self) -> None:
        """Add what was counted since the last call to the metrics."""
        with self._lock:
            self._fold_ended_threads()
            totals = self._ended.copy()
            for counts in list(self._of_threads):
                for what, count in counts.copy().items():
                    totals[what] += count
            for what, total in totals.items():
                growth = total - self._published[what]
                if growth:
                    _publish(what, growth)
                    self._published[what] = total

    def _counts(self) -> Counts:
        counts: Counts | None = getattr(self._local, "counts", None)
        if counts is None:
            counts = self._local.counts = defaultdict(float)
            self._local.end = end = _End()
            # Runs when the thread ends, in whatever thread notices: it may only leave a note.
            finalize(end, self._of_ended_threads.append, counts)
            with self._lock:
                self._of_threads.append(counts)
        return counts

    def _fold_ended_threads(self) -> None:
        """Servers start and end threads all the time; their counts must stay, their dictionaries must not."""
        while self._of_ended_threads:
            ended = self._of_ended_threads.popleft()
            self._of_threads = [counts for counts in self._of_threads if counts is not ended]
            for what, count in ended.items():
                self._ended[what] += count


class _End:
    """Lives as long as the thread that it belongs to."""


def _publish(what: Hashable, growth: float) -> None:
    match what:
        case ("hit", tier, namespace):
            metrics.CACHE_HITS.labels(tier, namespace).inc(growth)
        case ("miss", tier, namespace, reason):
            metrics.CACHE_MISSES.labels(tier, namespace, reason).inc(growth)
        case ("latency", tier, int(bucket)):
            _add_to_bucket(metrics.CACHE_LATENCY.labels(tier), bucket, growth)
        case ("latency_sum", tier):
            _add_to_sum(metrics.CACHE_LATENCY.labels(tier), growth)
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
