"""Derives anew what is behind the ledger, entity by entity: what its triggers have written down (`outdated.py`).

A build derives every entity and reads the whole ledger for it. Here only those entities are derived whose part of the
ledger changed, chunk by chunk, each in a database transaction of its own that removes their lines, reads their part and
writes their rows. So a single payment that was corrected by hand costs a few reads, and an import of a million costs
what a build of its entities would, without ever holding many locks. Who is interrupted loses one chunk's work.

Embeddings are places among *all* customers and merchants, which no entity's part of the ledger gives: they wait for a
build, which `overdue_embeddings` asks for.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final

import msgspec
from django.db import connection, transaction
from django.db.models import Max

from features import outdated
from features.definitions import CUSTOMER_ACTIVITY, EMBEDDINGS, GROUPS
from features.existence import announce
from features.ledger import Entities, read_ledger
from features.models import FeatureRow
from features.outdated import EMBEDDINGS_EVERY, GROUPS_BY_ENTITY, Waiting, publish, waiting
from features.progress import Progress, silent
from features.refresh import ACTIVITY_CHUNK, GroupValues, Written, try_lock_build, write_activity, write_rows
from features.writes import write_around
from mlserve.cache.keys import Key
from mlserve.postgres.retries import retry_contention

MOST_S: Final = 60.0
"""What is not done by then is left for the next run."""
COMPUTED_CHUNK: Final = 500
"""Entities whose part of the ledger is read at once. Of a merchant that may be a million rows, of 150 bytes each."""


class CaughtUp(msgspec.Struct):
    """`rows` derived anew by group. `waiting`: what is still behind, embeddings among them.

    `busy`: groups that somebody builds at the moment. `pending`: copies in L2, which did not answer.
    """

    rows: dict[str, int] = {}
    busy: list[str] = []
    pending: int = 0
    waiting: list[Waiting] = []

    @property
    def behind(self) -> list[Waiting]:
        """What is still waiting without a build being needed for it."""
        return [of for of in self.waiting if of.group not in EMBEDDINGS]


class _Chunk(msgspec.Struct, frozen=True):
    """None of `written`: somebody builds the group."""

    last: str | None
    written: Written | None


def catch_up(
    *, now: datetime, most_s: float = MOST_S, clock: Callable[[], float] = time.monotonic, progress: Progress = silent
) -> CaughtUp:
    """Derives anew what is behind the ledger, for `most_s` at most; `now` becomes the rows' as_of.

    Safe to repeat and to run several times at once, beside builds and scores. Raises Django's database errors; what was
    done by then stays. Not for use within a database transaction.
    """
    ends = clock() + most_s
    report = CaughtUp()
    for group in GROUPS_BY_ENTITY:
        _catch_up(group, now, report, left=lambda: clock() < ends, progress=progress)
    report.waiting = waiting()
    publish(report.waiting, now=now)
    return report


def overdue_embeddings(*, now: datetime) -> bool:
    """Whether some are behind the ledger, and the last build of them was long enough ago for another one."""
    if not any(of.group in EMBEDDINGS for of in waiting()):
        return False
    built_at = FeatureRow.objects.filter(group__in=EMBEDDINGS).aggregate(at=Max("as_of"))["at"]
    return built_at is None or now - built_at >= EMBEDDINGS_EVERY


def _catch_up(group: str, now: datetime, report: CaughtUp, *, left: Callable[[], bool], progress: Progress) -> None:
    derive = _derive_activity if group == CUSTOMER_ACTIVITY.name else _derive_computed
    after = ""
    while left():
        chunk = retry_contention(partial(derive, group, after, now), what=f"catching up of {group}")
        if chunk.written is None:
            report.busy.append(group)
            return
        if chunk.last is None:
            return
        progress(f"{group} again", 0.0)
        report.rows[group] = report.rows.get(group, 0) + chunk.written.rows
        if chunk.written.changed:
            keys = [Key(GROUPS[group].entity, entity_id, group) for entity_id in chunk.written.changed]
            report.pending += write_around(keys).pending
        after = chunk.last


def _derive_activity(group: str, after: str, now: datetime) -> _Chunk:
    with transaction.atomic(), connection.cursor() as cursor:
        taken = outdated.take(cursor, group, after=after, most=ACTIVITY_CHUNK)
        if not taken.entity_ids:
            return _Chunk(taken.last, Written(0, [], []))
        written = write_activity(cursor, taken.entity_ids, now)
        gone = _without_transactions(taken.entity_ids)
        written.changed.extend(outdated.retire(group, gone, now=now))
    return _Chunk(taken.last, written)


def _derive_computed(group: str, after: str, now: datetime) -> _Chunk:
    entity = GROUPS[group].entity
    with transaction.atomic():
        # A build has removed the lines that it saw, and takes what came later for its own.
        if not try_lock_build(group):
            return _Chunk(None, None)
        with connection.cursor() as cursor:
            taken = outdated.take(cursor, group, after=after, most=COMPUTED_CHUNK)
        if not taken.entity_ids:
            return _Chunk(taken.last, Written(0, [], []))
        ledger = read_ledger(until=now, of=Entities(entity, taken.entity_ids))
        values = GroupValues(ledger, now, silent).of(group)
        written = write_rows(group, *values, now, behind=frozenset(taken.entity_ids))
        announce({entity: written.inserted})
    return _Chunk(taken.last, written)


def _without_transactions(customers: Sequence[str]) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(_WITHOUT_TRANSACTIONS, (list(customers),))
        return [customer_id for (customer_id,) in cursor.fetchall()]


_WITHOUT_TRANSACTIONS = """
SELECT customer_id FROM unnest(%s::text[]) AS asked (customer_id)
WHERE NOT EXISTS (SELECT FROM features_transaction AS ledger WHERE ledger.customer_id = asked.customer_id)
"""
