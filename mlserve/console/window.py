"""What happened between two snapshots: differences of counters, and quantiles from histogram buckets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf

import msgspec

from mlserve.console.figures import Figures
from mlserve.console.samples import CounterKey


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` is None where nothing earlier is known: then `counters` count since the processes began."""

    seconds: float | None
    counters: dict[CounterKey, float]

    def total(self, metric: str, *labels: str) -> float:
        """The sum over all counters of `metric` whose labels begin with `labels`."""
        prefix = (metric, *labels)
        return sum(value for key, value in self.counters.items() if key[: len(prefix)] == prefix)

    def by_label(self, metric: str, *labels: str) -> dict[str, float]:
        """Sums by the label that follows `labels`."""
        prefix = (metric, *labels)
        sums: dict[str, float] = defaultdict(float)
        for key, value in self.counters.items():
            if key[: len(prefix)] == prefix and len(key) > len(prefix):
                sums[key[len(prefix)]] += value
        return dict(sums)

    def per_second(self, count: float) -> float | None:
        return count / self.seconds if self.seconds else None

    def buckets(self, metric: str, *labels: str) -> "Buckets":
        """The histogram `metric` (without `_bucket`) with exactly these labels."""
        return Buckets.from_cumulative(self.by_label(f"{metric}_bucket", *labels))


class Span(msgspec.Struct, frozen=True):
    """What a bucket tells of a value: above `lower` and at most `upper`, which may be infinite."""

    lower: float
    upper: float


class Buckets(msgspec.Struct, frozen=True):
    """A histogram: upper bounds, rising, the last infinite; and how many observations fell into each."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @classmethod
    def from_cumulative(cls, cumulative: dict[str, float]) -> "Buckets":
        """From Prometheus' form, where each bound counts everything at or below it."""
        rising = sorted((float(bound), count) for bound, count in cumulative.items())
        counts = [0.0] + [count for _bound, count in rising]
        return cls(
            bounds=tuple(bound for bound, _count in rising),
            counts=tuple(max(0.0, after - before) for before, after in pairwise(counts)),
        )

    @property
    def count(self) -> float:
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """About where the share `q` of the observations lies below, by a straight line inside the bucket.

        None without observations; infinite if it lies beyond the last finite bound.
        """
        found = self._quantile_bucket(q)
        if found is None:
            return None
        span, share = found
        return inf if span.upper == inf else span.lower + (span.upper - span.lower) * share

    def quantile_span(self, q: float) -> Span | None:
        """Between which bounds the share `q` of the observations ends: all that is certain. None without any."""
        found = self._quantile_bucket(q)
        return found and found[0]

    def _quantile_bucket(self, q: float) -> tuple[Span, float] | None:
        """The bucket, and at which share of its observations the quantile lies."""
        if not self.count:
            return None
        wanted = q * self.count
        passed = 0.0
        for lower, upper, count in self.ranges():
            if count and passed + count >= wanted:
                return Span(lower, upper), (wanted - passed) / count
            passed += count
        return None

    def share_certainly_above(self, limit: float) -> float | None:
        """At least this share of the observations exceeds `limit`. None without observations.

        Those in a bucket that the limit cuts may lie on either side of it.
        """
        if not self.count:
            return None
        return sum(count for lower, _upper, count in self.ranges() if lower >= limit) / self.count

    def ranges(self) -> Iterator[tuple[float, float, float]]:
        """Lower bound, upper bound, count."""
        return zip((0.0, *self.bounds[:-1]), self.bounds, self.counts, strict=True)


def since_start(figures: Figures) -> Window:
    """Everything that has been counted."""
    return Window(seconds=None, counters=figures.counters)


def between(earlier: Figures, later: Figures) -> Window:
    """The differences, none negative.

    A counter that fell says that the metric files were wiped in between: then all counting began anew, and what
    stands in `later` is all that is known to have happened.
    """
    seconds = max(later.at - earlier.at, 0.0) or None
    if any(later.counters.get(key, 0.0) < value for key, value in earlier.counters.items()):
        return Window(seconds=seconds, counters=later.counters)
    differences = {key: value - earlier.counters.get(key, 0.0) for key, value in later.counters.items()}
    return Window(seconds=seconds, counters=differences)


def look_back(series: Sequence[Figures], latest: Figures, *, seconds: float) -> Window:
    """The last `seconds`, or as much of them as the series covers. All since the start if it covers nothing."""
    earlier = [figures for figures in series if latest.at - seconds <= figures.at < latest.at]
    return between(earlier[0], latest) if earlier else since_start(latest)
