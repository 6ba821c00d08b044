"""Reads the feature groups behind a transaction through the cache, with the provenance of each.

The story: which groups the model needs -> one look-up of the cascade for all of them -> an outcome per group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from features import source
from features.definitions import GROUPS, GROUPS_OF_ENTITY
from features.existence import membership
from features.policies import policies_in_force
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Reading
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.policy import PolicyBook, Verdict
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine


def keys_of(*, groups: Sequence[str], customer_id: str, merchant_id: str) -> dict[str, Key]:
    """The cache keys of these groups for this pair of entities."""
    ids = {"customer": customer_id, "merchant": merchant_id}
    return {name: Key(entity := GROUPS[name].entity, ids[entity], name) for name in groups}


def read_groups(
    keys: Mapping[Any, Key],
    *,
    book: PolicyBook,
    request: RequestTier,
    budget: Budget,
    max_age_s: float | None = None,
    leave_no_trace: bool = False,
) -> Reading:
    """An outcome per key, whatever the mapping calls it.

    Never raises on account of the cache or of Postgres; what is missing has no values.
    """
    cache = engine()
    if not leave_no_trace:
        for kind, entity_id in {(key.kind, key.id) for key in keys.values()}:
            cache.hot_keys.count(kind, entity_id)
    return cache.features.read_many(
        list(keys.values()),
        policies=book.policies,
        loader=source.loader(cache.l3_breaker, cache.l3_limiter),
        request=request,
        budget=budget,
        max_age_s=max_age_s,
        leave_no_trace=leave_no_trace,
        membership=membership(),
    )


def invalidate_entity(*, entity: str, entity_id: str) -> dict[str, Any]:
    """Drops every copy of an entity's groups from L2 and from this process's L1; the source stays as it is.

    `delivered` is False while Redis cannot be told; the invalidation is then pending and follows.
    """
    cache = engine()
    keys = [Key(entity, entity_id, group.name) for group in GROUPS_OF_ENTITY[entity]]
    cache.l1.drop_many(keys)
    delivered = cache.pending.drop(keys)
    return {"entity": entity, "id": entity_id, "groups": [key.group for key in keys], "delivered": delivered}


def peek_entity(*, entity: str, entity_id: str, now: float) -> list[dict[str, Any]]:
    """What each tier holds of an entity, group by group, without promoting, extending or refilling anything.

    Tiers that hold nothing are left out; `l3` is what Postgres says now. Raises Django's database errors.
    """
    cache, book = engine(), policies_in_force()
    keys = [Key(entity, entity_id, group.name) for group in GROUPS_OF_ENTITY[entity]]
    held: dict[str, Mapping[Key, Entry | MissReason]] = {
        "l1": cache.l1.peek_many(keys, book.policies),
        "l2": cache.l2.peek_many(keys, book.policies),
        "l3": source.read_source(keys),
    }
    return [
        {
            "group": key.group,
            "values": _named_values(key.group, held["l3"][key]),
            "copies": [
                _copy(tier, entry, key=key, book=book, now=now)
                for tier, found in held.items()
                if isinstance(entry := found[key], Entry) and (entry.values is not None or tier != "l3")
            ],
        }
        for key in keys
    ]


def _named_values(group: str, entry: object) -> dict[str, float] | list[float] | None:
    if not isinstance(entry, Entry) or entry.values is None:
        return None
    if GROUPS[group].repeated:
        return list(entry.values)
    return dict(zip([stored.name for stored in GROUPS[group].values], entry.values, strict=True))


def _copy(tier: str, entry: Entry, *, key: Key, book: PolicyBook, now: float) -> dict[str, Any]:
    policy = book[key.group]
    limit_s = policy.negative_ttl_s if entry.values is None else policy.fresh_for_s
    return {
        "tier": tier,
        "negative": entry.values is None,
        "version": entry.version,
        "as_of": entry.as_of,
        "written_at": entry.written_at,
        "age_s": max(0.0, now - entry.as_of),
        "max_age_s": limit_s,
        "stale": policy.verdict(entry, now=now, max_age_s=None) is not Verdict.FRESH,
    }
