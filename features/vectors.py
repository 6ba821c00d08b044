"""Reads the feature groups behind a transaction through the cache, with the provenance of each.

The story: which groups the model needs -> one look-up of the cascade for all of them -> an outcome per group.
"""

from collections.abc import Collection, Mapping, Sequence
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
    at_least: Mapping[Key, int] | None = None,
    leave_no_trace: bool = False,
) -> Reading:
    """An outcome per key. Never raises on account of the cache or of Postgres; what is missing has no values.

    `at_least`: versions that the caller has seen, of whatever keys; older copies of those do not count.
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
        at_least=at_least and {key: at_least[key] for key in keys.values() if at_least.get(key)},
        leave_no_trace=leave_no_trace,
        membership=membership(),
    )


def invalidate_entity(*, entity: str, entity_id: str, groups: Collection[str] | None = None) -> dict[str, Any]:
    """Drops every copy of an entity's groups from L2 and from L1 of every process; the source stays as it is.

    All of its groups, or those of `groups`, whatever copies there are: nobody asks how new they are.
    `delivered` is False while Redis cannot be told; the invalidation is then pending and follows.
    """
    cache = engine()
    keys = _keys_of_entity(entity, entity_id, groups)
    delivered = cache.pending.drop(keys)
    cache.chain.withdraw(keys)  # here at once; other processes hear of it within milliseconds
    return {"entity": entity, "id": entity_id, "groups": [key.group for key in keys], "delivered": delivered}


def groups_held_in_l2(*, entity: str, entity_id: str, groups: Collection[str] | None = None) -> list[str] | None:
    """Which of these groups L2 has a copy of, whatever it is worth; None if it does not answer. Only looks."""
    found = engine().l2.peek_many(_keys_of_entity(entity, entity_id, groups), policies_in_force().policies)
    if any(held in (MissReason.TIMEOUT, MissReason.BREAKER) for held in found.values()):
        return None
    return [key.group for key, held in found.items() if held not in (MissReason.COLD, MissReason.INVALIDATED)]


def peek_entity(*, entity: str, entity_id: str, now: float) -> list[dict[str, Any]]:
    """What each tier holds of an entity, group by group, without promoting, extending or refilling anything.

    Tiers that hold nothing are left out; `l3` is what Postgres says now, `version` that of its row, if it is a deleted
    one too. Raises Django's database errors.
    """
    cache, book = engine(), policies_in_force()
    keys = _keys_of_entity(entity, entity_id)
    held: dict[str, Mapping[Key, Entry | MissReason]] = {
        "l1": cache.l1.peek_many(keys, book.policies),
        "l2": cache.l2.peek_many(keys, book.policies),
        "l3": (stored := source.read_source(keys)),
    }
    return [
        {
            "group": key.group,
            "values": _named_values(key.group, stored[key]),
            "version": stored[key].version,
            "copies": [
                _copy(tier, entry, key=key, book=book, now=now)
                for tier, found in held.items()
                if isinstance(entry := found[key], Entry) and (entry.values is not None or tier != "l3")
            ],
        }
        for key in keys
    ]


def _keys_of_entity(entity: str, entity_id: str, groups: Collection[str] | None = None) -> list[Key]:
    named = (group.name for group in GROUPS_OF_ENTITY[entity])
    return [Key(entity, entity_id, name) for name in named if groups is None or name in groups]


def _named_values(group: str, entry: object) -> dict[str, float] | list[float] | None:
    if not isinstance(entry, Entry) or entry.values is None:
        return None
    if GROUPS[group].repeated or not GROUPS[group].fits(entry.values):
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
