"""Brings spooled decisions into Postgres once it answers again, in every process that gives scores."""

from collections.abc import Sequence

import msgspec
import structlog

from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from mlserve.errors import MlserveError
from mlserve.poller import Poller
from predictions import spool
from predictions.journal import JournalEntry, commit

_log = structlog.get_logger(__name__)
INTERVAL_S = 1.0
_decoder = msgspec.json.Decoder(JournalEntry)


def deliver_spooled() -> int:
    """Commit what waits on this host; the number of decisions delivered. Raises database errors: they stay spooled."""
    if engine().l3_write_breaker.state is not State.CLOSED or not spool.folder().exists():
        return 0
    delivered = spool.drain(_deliver)
    if delivered:
        _log.info("spool_delivered", decisions=delivered)
    return delivered


def _deliver(lines: Sequence[bytes]) -> None:
    entries = []
    for line in lines:
        try:
            entries.append(_decoder.decode(line))
        except msgspec.MsgspecError as error:
            _log.error("spool_line_refused", error=str(error), line=line[:200].decode("utf-8", "replace"))
            spool.set_aside(line)
    for entry, outcome in zip(entries, commit(entries) if entries else [], strict=True):
        if isinstance(outcome, MlserveError):
            _log.error("spooled_decision_refused", transaction_id=entry.transaction.id, error=str(outcome))
            spool.set_aside(msgspec.json.encode(entry))


def _poll() -> None:
    deliver_spooled()


_poller = Poller("spool", INTERVAL_S, _poll)


def ensure_delivering() -> None:
    """Start delivering in this process; idempotent."""
    _poller.ensure_started()


def stop() -> None:
    """Stop delivering in this process."""
    _poller.stop()
