"""`python -m benchmarks.proof_reader`: reads one request's six groups again and again, with proof and without.

A child of `proof.py`. Copies have a day to live, so that nothing but the proof can make a read of L1 or L2 miss.
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import cycle
from random import Random
from typing import Any

import django
import msgspec

from benchmarks.child import say, told
from mlserve.cache.outcome import MissReason, Tier

PAIRS = 200
"""Customers and merchants."""
GROUP = "merchant_profile"
"""The one that is written to now and then."""
_KEPT_S = 86_400.0
_BATCH = 10
"""Reads between two looks at whether time is up."""
_VOUCHED_S = 0.3
_PATIENCE_S = 20.0


class Task(msgspec.Struct, frozen=True):
    """Read for about so many seconds. `relayed`: wait until somebody vouches for what is there."""

    seconds: float
    proven: bool
    use_l1: bool
    relayed: bool = True


class Took(msgspec.Struct, frozen=True):
    """Of each request, in microseconds (quantiles); of each group that was read, who answered; and how many copies of
    L1 and of L2 did not serve because nobody vouched for them."""

    requests: int
    p50_us: float
    p99_us: float
    tiers: dict[str, int]
    unproven: dict[str, int]


class Reader:
    """Of the engine as every process that serves has it."""

    def __init__(self) -> None:
        from features import source
        from features.definitions import GROUPS, MODEL_GROUPS
        from mlserve.cache.keys import Key
        from mlserve.cache.wiring import engine

        self._engine = engine()
        self._load = source.loader(self._engine.l3_breaker, self._engine.l3_limiter)
        self._groups = [group for group in GROUPS.values() if group.name in MODEL_GROUPS]
        self._pairs = [[Key(group.entity, f"p{pair}", group.name) for group in self._groups] for pair in range(PAIRS)]
        self._make_rows()

    def run(self, task: Task) -> Took:
        from mlserve.cache.tiers.request import RequestTier

        if task.relayed:
            self._wait_for_a_voucher()
        policies, clock = self._policies(task), self._engine.clock
        read, now, load, budget = self._engine.features.read_many, clock.monotonic, self._load, self._engine.budget
        for keys in self._pairs:  # nothing is cold
            read(keys, policies=policies, loader=load, request=RequestTier(), budget=budget())
        self._engine.filler.flush()
        took, tiers, before = array("d"), Counter[str](), self._unproven()
        pairs = cycle(self._pairs)
        ends_at = now() + task.seconds
        while now() < ends_at:
            for _ in range(_BATCH):
                keys = next(pairs)
                began = now()
                reading = read(keys, policies=policies, loader=load, request=RequestTier(), budget=budget())
                took.append(now() - began)
                tiers.update(outcome.tier for outcome in reading.outcomes.values())
        in_order = sorted(took)
        return Took(
            requests=len(in_order),
            p50_us=in_order[len(in_order) // 2] * 1e6,
            p99_us=in_order[len(in_order) * 99 // 100] * 1e6,
            tiers=dict(tiers),
            unproven={tier: count - before[tier] for tier, count in self._unproven().items()},
        )

    def _policies(self, task: Task) -> Mapping[str, Any]:
        from django.conf import settings

        from mlserve.cache.policy import Policy

        return {
            group.name: Policy(
                namespace=group.name,
                schema=group.schema,
                fresh_for_s=_KEPT_S,
                grace_s=0,
                negative_ttl_s=0,
                use_l1=task.use_l1,
                proven=task.proven,
                bound_s=settings.FRESHNESS_BOUND_S,
                fixed_values=len(group.values),
                repeated_values=len(group.repeated),
            )
            for group in self._groups
        }

    def _unproven(self) -> dict[str, int]:
        totals, names = self._engine.recorder.totals(), [group.name for group in self._groups]
        return {
            str(tier): round(sum(totals["miss", tier, name, MissReason.UNPROVEN] for name in names))
            for tier in (Tier.L1, Tier.L2)
        }

    def _wait_for_a_voucher(self) -> None:
        clock = self._engine.clock
        ends_at = clock.monotonic() + _PATIENCE_S
        while clock.now() - self._engine.l1.vouched_at > _VOUCHED_S:
            if clock.monotonic() > ends_at:
                raise SystemExit("proof: no relay vouches for anything")
            clock.sleep(0.02)

    def _make_rows(self) -> None:
        from benchmarks.l2_read import made_up_values
        from features.models import FeatureRow

        random, now = Random(1), self._engine.clock.now()
        FeatureRow.objects.bulk_create(
            FeatureRow(
                group=key.group,
                entity_id=key.id,
                values=list(made_up_values(key.group, random, now=now)),
                as_of=datetime.fromtimestamp(now, UTC),
            )
            for pair in self._pairs
            for key in pair
        )


def main() -> None:
    django.setup()
    reader = Reader()
    say("ready")
    for message in told():
        say(reader.run(msgspec.convert(message, Task)))


if __name__ == "__main__":
    main()
