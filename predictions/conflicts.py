"""Which transactions a dry run must refuse: those whose id the journal or the ledger knows with other contents.

A real run learns that from its commit. A dry run commits nothing, so it asks: one statement whatever the number of
transactions, by their keys. While PostgreSQL does not answer a dry run is answered nevertheless, and no conflict is
found but with decisions that wait on this host's disk: a real run would be taken as well then, and the conflict found
when it is delivered.
"""

from collections.abc import Sequence
from typing import Any, Final

import structlog
from django.db import DatabaseError, InterfaceError, connection

from features.ingest import NewTransaction, is_same
from mlserve.api.database_time import database_within
from mlserve.cache.wiring import engine
from mlserve.postgres.failures import Failure, failure_of, stops_reads
from mlserve.postgres.sessions import Kind
from predictions.identity import digest_of, transaction_of
from predictions.journal import TransactionConflict, conflict_with_decision, conflict_with_ledger
from predictions.messages import ScoreRequest
from predictions.spooled.known import known_decisions

_log = structlog.get_logger(__name__)
MAX_WAIT_S: Final = 0.5
"""A dry run waits no longer for what is only about refusing it."""


class Known:
    """What is known of these transactions. `conflict` says what a real run would."""

    def __init__(self, requests: Sequence[ScoreRequest]) -> None:
        ids = sorted({request.transaction_id for request in requests})
        self._decided = {name: known.digest for name, known in known_decisions().find(ids).items()}
        self._ledger: dict[str, NewTransaction] = {}
        for digest, *row in _stored(ids) if ids else ():
            transaction = NewTransaction(*row)
            self._ledger[transaction.id] = transaction
            if digest is not None:
                self._decided[transaction.id] = bytes(digest)

    def is_decided(self, request: ScoreRequest) -> bool:
        """Whether this id was scored before, with whatever contents."""
        return request.transaction_id in self._decided

    def conflict(self, request: ScoreRequest) -> TransactionConflict | None:
        """None for what is new, or a repetition."""
        digest = self._decided.get(request.transaction_id)
        if digest is not None:
            return None if digest == digest_of(request) else conflict_with_decision(request.transaction_id)
        held = self._ledger.get(request.transaction_id)
        if held is None or is_same(transaction_of(request), held):
            return None
        return conflict_with_ledger(request.transaction_id)


def _stored(ids: Sequence[str]) -> Sequence[tuple[Any, ...]]:
    breaker = engine().l3_breaker
    if not breaker.allow():
        return ()
    try:
        with database_within(MAX_WAIT_S, kind=Kind.API), connection.cursor() as cursor:
            cursor.execute(_STORED, (list(ids),))
            rows = cursor.fetchall()
    except (DatabaseError, InterfaceError) as error:
        failure = failure_of(error)
        connection.close()
        if stops_reads(failure) or failure is Failure.CONTENTION:
            breaker.failure(timed_out=failure in (Failure.TIMEOUT, Failure.CONTENTION))
        _log.warning("dry_run_conflicts_unknown", why=str(failure))
        return ()
    breaker.success()
    return rows


_STORED: Final = """
SELECT decision.request_digest, ledger.id, ledger.occurred_at, ledger.customer_id, ledger.merchant_id,
       ledger.amount::float8, ledger.currency
FROM features_transaction AS ledger LEFT JOIN predictions_decision AS decision ON decision.transaction_id = ledger.id
WHERE ledger.id = ANY(%s)
"""
