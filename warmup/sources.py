"""Which entities are worth warming: the most active ones by the ledger, the hot ones by live traffic."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
import redis
from django.db import connection

from features.definitions import GROUPS_OF_ENTITY, MODEL_GROUPS
from mlserve.cache.hotkeys import read_hot_keys
from mlserve.cache.keys import Key

RECENT_TRANSACTIONS = 50_000
"""Who stands in the newest part of the ledger is likely to come again. A number, no time: it bounds the query's cost,
and it finds somebody in a quiet ledger as well."""


class WarmEntity(msgspec.Struct, frozen=True):
    """`kind` is `customer` or `merchant`."""

    kind: str
    id: str


def keys_of(entity: WarmEntity) -> list[Key]:
    """One key for each feature group of the entity that a score may read."""
    return [
        Key(entity.kind, entity.id, group.name) for group in GROUPS_OF_ENTITY[entity.kind] if group.name in MODEL_GROUPS
    ]


def most_active(*, limit: int, now: datetime) -> list[WarmEntity]:
    """At most `limit` customers and as many merchants, the most active of both first.

    Activity is counted over the newest `RECENT_TRANSACTIONS` that are not after `now`. Raises Django's database errors.
    """
    with connection.cursor() as cursor:
        cursor.execute(_MOST_ACTIVE, {"now": now, "recent": RECENT_TRANSACTIONS, "limit": limit})
        return [WarmEntity(kind, entity_id) for kind, entity_id in cursor.fetchall()]


def hottest(client: "redis.Redis", *, limit: int, now: float) -> Sequence[WarmEntity]:
    """At most `limit` entities, the most asked for first; `now` in seconds since 1970. Raises `redis.RedisError`."""
    return [
        WarmEntity(hot.kind, hot.id)
        for hot in read_hot_keys(client, limit=limit, now=now)
        if hot.kind in GROUPS_OF_ENTITY and hot.id
    ]


# One pass over the newest stretch of the index on time, both countings from it.
_MOST_ACTIVE = """
WITH recent AS (
    SELECT customer_id, merchant_id FROM features_transaction
    WHERE occurred_at <= %(now)s ORDER BY occurred_at DESC LIMIT %(recent)s
), counted AS (
    SELECT CASE WHEN customer_id IS NULL THEN 'merchant' ELSE 'customer' END AS kind,
           coalesce(customer_id, merchant_id) AS id, count(*) AS transactions
    FROM recent
    GROUP BY GROUPING SETS ((customer_id), (merchant_id))
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY kind ORDER BY transactions DESC, id) AS place FROM counted
)
SELECT kind, id FROM ranked WHERE place <= %(limit)s ORDER BY transactions DESC, kind, id
"""
