"""`python -m benchmarks.cost_reader`: reads one request's features, or one prediction, again and again from one tier.

A child of `cost.py`, with servers of the benchmark's own. Says how many reads it made, and what they took.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from random import Random
from time import perf_counter, process_time
from typing import Any

import django
import msgspec
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.child import say, told
from mlserve.cache.outcome import Tier

PAIRS = 300
"""Customers and merchants."""
PREDICTIONS = 300
_KEPT_S = 86_400.0
_BATCH = 20
"""Reads between two looks at the clock."""
_AT_ONCE = 100


class Task(msgspec.Struct, frozen=True):
    """What to read: `features` or `prediction`, answered by `tier`, for about so many seconds."""

    what: str
    tier: Tier
    seconds: float


class Spent(msgspec.Struct, frozen=True):
    """`cpu_s`: of this process, all its threads."""

    reads: int
    cpu_s: float
    elapsed_s: float


class Filled(msgspec.Struct, frozen=True):
    """`l1_bytes`: of all copies in this process, estimated as L1 does."""

    l1_bytes: int


class Reader:
    """One cascade for features and one for predictions; policies say which tier may answer."""

    def __init__(self) -> None:
        from features.definitions import GROUPS, MODEL_GROUPS
        from features.source import loader
        from mlserve.cache.cascade import Cascade
        from mlserve.cache.filler import Filler
        from mlserve.cache.loading import DirectLoading
        from mlserve.cache.stats import NullStats
        from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
        from mlserve.cache.wiring import engine

        self._groups = [group for group in GROUPS.values() if group.name in MODEL_GROUPS]
        self._engine = engine()
        self._l1 = L1Tier(BoundedStore(100_000, 256 * 1024 * 1024))
        self._load = loader(self._engine.l3_breaker, self._engine.l3_limiter)
        stats = NullStats()
        self._features, self._predictions = (
            Cascade(
                l1=self._l1,
                l2=self._engine.l2,
                loading=DirectLoading(filler=Filler(self._engine.l2, stats), stats=stats, source_tier=source),
                stats=stats,
                clock=self._engine.clock,
                source_tier=source,
            )
            for source in (Tier.L3, Tier.COMPUTED)
        )
        self._pairs = self._make_pairs()
        self._make_predictions()

    def fill(self, what: str) -> Filled:
        """The copies of all `features` or `prediction`s into both tiers. Returns when they are there."""
        from features.source import read_source

        if what == "features":
            entries = read_source([key for pair in self._pairs for key in pair])
        else:
            entries = {self._prediction_key(row): self._computed(row) for row in self._rows}
        policies = self._policies(Tier.L2)
        self._l1.put_many(entries, policies)
        items = list(entries.items())
        for start in range(0, len(items), _AT_ONCE):
            if not self._engine.l2.put_many(dict(items[start : start + _AT_ONCE]), policies):
                raise SystemExit("cost: L2 did not take the copies")
        return Filled(sum(entry.size_bytes for entry in entries.values()))

    def run(self, task: Task) -> Spent:
        read = self._reader_of(task)
        reads, cpu, started = 0, process_time(), perf_counter()
        while True:
            for _ in range(_BATCH):
                read()
            reads += _BATCH
            if perf_counter() - started >= task.seconds:
                return Spent(reads, process_time() - cpu, perf_counter() - started)

    def _reader_of(self, task: Task) -> Callable[[], None]:
        from mlserve.cache.tiers.request import RequestTier

        policies = self._policies(task.tier)
        pairs, rows = cycle(self._pairs), cycle(self._rows)

        def features() -> None:
            self._check(
                self._features.read_many(
                    next(pairs),
                    policies=policies,
                    loader=self._load,
                    request=RequestTier(),
                    budget=self._engine.budget(),
                ),
                task.tier,
            )

        def computed() -> None:
            self._model.score_one(next(rows))

        def prediction() -> None:
            row = next(rows)
            self._check(
                self._predictions.read_many(
                    [self._prediction_key(row)],
                    policies=policies,
                    loader=lambda keys: dict.fromkeys(keys, self._computed(row)),
                    request=RequestTier(),
                    budget=self._engine.budget(),
                ),
                task.tier,
            )

        if task.what == "features":
            return features
        return computed if task.tier is Tier.COMPUTED else prediction

    def _check(self, reading: Any, tier: Tier) -> None:
        for outcome in reading.outcomes.values():
            if outcome.tier is not tier:
                raise SystemExit(f"cost: {outcome.key} was answered by {outcome.tier}, not {tier}")

    def _policies(self, tier: Tier) -> Mapping[str, Any]:
        from mlserve.cache.keys import PREDICTION
        from mlserve.cache.policy import Policy

        schemas = {group.name: group.schema for group in self._groups} | {PREDICTION: 1}
        return {
            name: Policy(
                namespace=name,
                schema=schema,
                fresh_for_s=_KEPT_S,
                grace_s=0,
                negative_ttl_s=0,
                use_l1=tier is Tier.L1,
                use_l2=tier is Tier.L2,
            )
            for name, schema in schemas.items()
        }

    def _make_pairs(self) -> list[list[Any]]:
        """In Postgres; each is the keys of one request."""
        from benchmarks.l2_read import made_up_values
        from features.models import FeatureRow
        from mlserve.cache.keys import Key

        random, now = Random(1), self._engine.clock.now()
        pairs = [[Key(group.entity, f"c{number}", group.name) for group in self._groups] for number in range(PAIRS)]
        FeatureRow.objects.bulk_create(
            FeatureRow(
                group=key.group,
                entity_id=key.id,
                values=list(made_up_values(key.group, random, now=now)),
                as_of=_moment(now),
            )
            for pair in pairs
            for key in pair
        )
        return pairs

    def _make_predictions(self) -> None:
        from benchmarks.artifact import trained

        with threadpool_limits(limits=1):
            _estimator, self._model, rows = trained()
        self._rows = [tuple(row.tolist()) for row in rows[:PREDICTIONS]]

    def _prediction_key(self, row: Sequence[float]) -> Any:
        from mlserve.cache.keys import PREDICTION, Key
        from predictions.scoring import prediction_id

        return Key(PREDICTION, prediction_id(self._model, tuple(row)), PREDICTION)

    def _computed(self, row: Sequence[float]) -> Any:
        from mlserve.cache.entry import Entry

        now = self._engine.clock.now()
        return Entry(1, now, now, (self._model.score_one(tuple(row)),))


def _moment(seconds: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)


def main() -> None:
    django.setup()
    reader = Reader()
    say("ready")
    for message in told():
        say(reader.fill(message) if isinstance(message, str) else reader.run(msgspec.convert(message, Task)))


if __name__ == "__main__":
    main()
