"""The inspector over this process's engine."""

from django.conf import settings

from features.inspection.copies import Tiers
from features.inspection.inspector import Inspector
from features.inspection.repair import Repair
from features.policies import policies_in_force
from mlserve.cache.clock import Clock
from mlserve.cache.stats import NullStats
from mlserve.cache.tiers.l2_redis import REPLICAS, L2Tier
from mlserve.cache.wiring import Engine, engine


def make_inspector(*, clock: Clock | None = None) -> Inspector:
    """Its looks leave no trace in the figures of the cache."""
    cache = engine()
    clock = clock or cache.clock
    replicas = REPLICAS if settings.CACHE_PARTITIONS > 1 else 1
    return Inspector(
        tiers=Tiers(l2=[_as_seen_at(cache, replica) for replica in range(replicas)], bus=cache.bus, clock=clock),
        repair=Repair(wire=cache.wire, bus=cache.bus, partitions=settings.CACHE_PARTITIONS),
        policies=lambda: policies_in_force().policies,
        clock=clock,
    )


def _as_seen_at(cache: Engine, replica: int) -> L2Tier:
    """L2 for somebody who has heard of no batch and reads that copy of every entity."""
    return L2Tier(
        cache.wire,
        NullStats(),
        clock=cache.clock,
        partitions=settings.CACHE_PARTITIONS,
        replica_of=lambda _kind, _entity_id: replica,
        seal=cache.seal,
    )
