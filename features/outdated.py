"""Which features are behind the ledger, as the ledger's own triggers have written it down (migration 0013).

Lines are added by those who change the ledger, and removed by who derives the row anew: *first* the lines go and
*then*, in a later statement of the same database transaction, the ledger is read. At READ COMMITTED that statement sees
every change whose line was removed. A line that a transaction under way relies on is locked by it, and left alone: its
entity stays flagged until that transaction has ended, and nobody waits for it.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from django.db import connection
from django.db.models import Count, Min

from features.activity import Cursor
from features.definitions import CUSTOMER_ACTIVITY, CUSTOMER_PROFILE, EMBEDDINGS, MERCHANT_PROFILE, MERCHANT_RISK
from features.models import OutdatedFeature
from mlserve.observability import metrics

EMBEDDINGS_EVERY: Final = timedelta(minutes=15)
"""They cost a read of the whole ledger, so imports that never end must not make them be built without end."""
GROUPS_BY_ENTITY: Final = (CUSTOMER_ACTIVITY.name, CUSTOMER_PROFILE.name, MERCHANT_PROFILE.name, MERCHANT_RISK.name)
"""What follows from an entity's own part of the ledger."""


class Waiting(msgspec.Struct, frozen=True):
    """`entities` of a group are behind the ledger, the first of them since `since`."""

    group: str
    entities: int
    since: datetime


def waiting() -> list[Waiting]:
    """By group, in the order of their names; empty if nothing is behind. Raises Django's database errors."""
    groups = OutdatedFeature.objects.values("group").order_by("group")
    return [
        Waiting(of["group"], of["entities"], of["since"])
        for of in groups.annotate(entities=Count("entity_id", distinct=True), since=Min("at"))
    ]


class Taken(msgspec.Struct, frozen=True):
    """`last` is None where nothing was left; `entity_ids` are without those whose lines others hold."""

    entity_ids: list[str]
    last: str | None


def take(cursor: Cursor, group: str, *, after: str, most: int) -> Taken:
    """The next entities of the group that are behind, from the one after `after` on; their lines go."""
    cursor.execute(_TAKE, {"group": group, "after": after, "most": most})
    [(last, entity_ids)] = cursor.fetchall()
    return Taken(sorted(entity_ids), last)


def publish(behind: Collection[Waiting], *, now: datetime) -> None:
    """How many entities are behind, and since when, for whoever looks at the metrics."""
    by_group = {of.group: of for of in behind}
    for group in (*GROUPS_BY_ENTITY, *EMBEDDINGS):
        of = by_group.get(group)
        metrics.FEATURES_OUTDATED.labels(group).set(of.entities if of else 0)
        metrics.FEATURES_OUTDATED_AGE.labels(group).set(max(0.0, (now - of.since).total_seconds()) if of else 0.0)


def settle(group: str, entity_ids: Sequence[str]) -> None:
    """The lines of these entities go, but for those that others hold. Before the statement that reads the ledger."""
    with connection.cursor() as cursor:
        cursor.execute(_SETTLE, (group, list(entity_ids)))


def settle_groups(groups: Collection[str]) -> dict[str, set[str]]:
    """The lines of all entities of these groups go, but for those that others hold; which entities they were.

    Before the statement that reads the ledger.
    """
    with connection.cursor() as cursor:
        cursor.execute(_SETTLE_GROUPS, (sorted(groups),))
        found = cursor.fetchall()
    settled: dict[str, set[str]] = {group: set() for group in groups}
    for group, entity_id in found:
        settled[group].add(entity_id)
    return settled


def retire(group: str, entity_ids: Collection[str], *, now: datetime) -> list[str]:
    """Deletes softly the rows of entities of which the ledger has nothing any more; those that had one."""
    if not entity_ids:
        return []
    with connection.cursor() as cursor:
        cursor.execute(_RETIRE, {"group": group, "ids": list(entity_ids), "now": now})
        return [entity_id for (entity_id,) in cursor.fetchall()]


# By the index, from where the last chunk ended: what was removed a moment ago is not walked through again.
_TAKE = """
WITH chosen AS MATERIALIZED (
    SELECT DISTINCT entity_id FROM features_outdatedfeature
    WHERE "group" = %(group)s AND entity_id > %(after)s ORDER BY entity_id LIMIT %(most)s
), free AS MATERIALIZED (
    SELECT line.id FROM features_outdatedfeature AS line JOIN chosen USING (entity_id)
    WHERE line."group" = %(group)s
    FOR UPDATE OF line SKIP LOCKED
), gone AS (
    DELETE FROM features_outdatedfeature AS line USING free WHERE line.id = free.id RETURNING line.entity_id
)
SELECT (SELECT max(entity_id) FROM chosen), (SELECT coalesce(array_agg(DISTINCT entity_id), '{}') FROM gone)
"""
_SETTLE = """
WITH free AS MATERIALIZED (
    SELECT id FROM features_outdatedfeature WHERE "group" = %s AND entity_id = ANY(%s) FOR UPDATE SKIP LOCKED
)
DELETE FROM features_outdatedfeature AS line USING free WHERE line.id = free.id
"""
_SETTLE_GROUPS = """
WITH free AS MATERIALIZED (
    SELECT id FROM features_outdatedfeature WHERE "group" = ANY(%s) FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM features_outdatedfeature AS line USING free WHERE line.id = free.id RETURNING "group", entity_id
)
SELECT DISTINCT "group", entity_id FROM gone
"""
_RETIRE = """
WITH held AS MATERIALIZED (
    SELECT entity_id FROM features_featurerow
    WHERE "group" = %(group)s AND entity_id = ANY(%(ids)s) AND deleted_at IS NULL
    ORDER BY entity_id COLLATE "C" FOR NO KEY UPDATE
)
UPDATE features_featurerow AS stored SET deleted_at = %(now)s FROM held
WHERE stored."group" = %(group)s AND stored.entity_id = held.entity_id
RETURNING stored.entity_id
"""
