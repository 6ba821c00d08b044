"""L3: reads feature groups from Postgres for the cascade, all missing ones in one statement."""

from collections.abc import Callable, Mapping, Sequence

import structlog
from django.db import DatabaseError, InterfaceError, connection

from features.activity import load_rows
from features.definitions import GROUPS
from mlserve.cache.breaker import Breaker
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.limiter import ConcurrencyLimiter, Saturated
from mlserve.cache.loading import SourceUnavailable
from mlserve.observability import metrics
from mlserve.postgres.failures import Failure, failure_of, stops_reads
from mlserve.postgres.sessions import Kind, session_of

_log = structlog.get_logger(__name__)
_REASON = {Failure.TIMEOUT: "timeout", Failure.CONTENTION: "locked"}
Load = Callable[[Sequence[Key]], Mapping[Key, Entry]]


def loader(breaker: Breaker, limiter: ConcurrencyLimiter) -> Load:
    """The cascade's loader for feature groups, guarded by the breaker of Postgres and the cap on its reads."""

    def load(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        if not breaker.allow():
            raise SourceUnavailable("breaker")
        try:
            with limiter.place(), session_of(Kind.REQUEST):
                entries = _read_on_live_session(keys)
        except Saturated:
            raise SourceUnavailable("saturated") from None
        except (DatabaseError, InterfaceError) as error:
            failure = failure_of(error)
            # A row that is locked keeps no reader waiting; a whole table that is locked keeps all of them.
            if stops_reads(failure) or failure is Failure.CONTENTION:
                breaker.failure(timed_out=failure in (Failure.TIMEOUT, Failure.CONTENTION))
            raise SourceUnavailable(_REASON.get(failure, "database")) from error
        finally:
            _give_connection_back()
        breaker.success()
        return _without_unfit(entries)

    return load


def _read_on_live_session(keys: Sequence[Key]) -> dict[Key, Entry]:
    """Once more on a new session, where this one was the only thing that was wrong."""
    try:
        return read_source(keys)
    except (DatabaseError, InterfaceError) as error:
        if failure_of(error) is not Failure.SESSION or connection.in_atomic_block:
            raise
        connection.close()
        return read_source(keys)


def _without_unfit(entries: Mapping[Key, Entry]) -> Mapping[Key, Entry]:
    """Rows that a hand or another release has written and nobody can read are no values, and no reason to fail."""
    unfit = [
        key for key, entry in entries.items() if entry.values is not None and not GROUPS[key.group].fits(entry.values)
    ]
    if not unfit:
        return entries
    metrics.SOURCE_ERRORS.labels("unfit_row").inc(len(unfit))
    for key in unfit:
        _log.warning("unfit_row", group=key.group, entity=key.kind, id=key.id, version=entries[key].version)
    return {key: entry for key, entry in entries.items() if key not in unfit}


def _give_connection_back() -> None:
    """To the pool, now: a request that goes on to wait for its commit would keep it from others for that long."""
    if not connection.in_atomic_block:
        connection.close()


def read_source(keys: Sequence[Key]) -> dict[Key, Entry]:
    """An entry for each key, negative where there is no row or only a deleted one. Raises Django's database errors.

    A group that is written through is written in the same database transaction as the ledger, so at the moment of the
    read the source vouches for its row however long ago it last changed: `as_of` is that moment. Others are as old as
    the build or the flush that wrote them. Rows that an earlier release wrote are completed (`FeatureGroup.completed`).

    Where the ledger has changed since without the row, its entry says so, and the source vouches for it no longer than
    until then.
    """
    with connection.cursor() as cursor:
        loaded = load_rows(cursor, [(key.group, key.id) for key in keys])
    rows = {(row.group, row.entity_id): row for row in loaded.rows}
    entries: dict[Key, Entry] = {}
    for key in keys:
        row = rows.get((key.group, key.id))
        if row is None or row.deleted:
            entries[key] = Entry(row.version if row else 0, loaded.read_at, loaded.read_at, None, 0.0, loaded.read_at)
        else:
            as_of = row.as_of
            if GROUPS[key.group].write == "through":
                as_of = max(as_of, row.outdated_since) if row.outdated_since else loaded.read_at
            values = GROUPS[key.group].completed(row.values)
            entries[key] = Entry(
                row.version, as_of, loaded.read_at, values, 0.0, loaded.read_at, outdated=row.outdated_since > 0
            )
    return entries
