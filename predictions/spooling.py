"""What the journal does with decisions that PostgreSQL cannot take: once each into the spool, whoever repeats them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec

from mlserve.cache.outcome import Degradation
from mlserve.errors import ErrorCode, MlserveError
from mlserve.observability import metrics
from predictions import spool
from predictions.messages import with_degradation
from predictions.spooled.known import Known, known_decisions

if TYPE_CHECKING:
    from predictions.journal import JournalEntry


class AnswerAway(MlserveError):
    """The decision stands, but the answer that was given lies in PostgreSQL, which does not answer."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE
    retry_after_s: ClassVar[int | None] = 5

    def __init__(self, transaction_id: str) -> None:
        super().__init__(
            f"transaction {transaction_id} was scored before, and PostgreSQL, which has the answer, does not answer; "
            "send the same request again"
        )


class Kept(msgspec.Struct, frozen=True):
    """The decision is in the spool now. `earlier`: it, or another one under its id, was before."""

    earlier: Known | None = None


def spool_decisions(entries: "Sequence[JournalEntry]") -> list[Kept | MlserveError]:
    """How each ended, in their order. Of entries with one transaction id, the first counts."""
    known = known_decisions()
    earlier = known.find({entry.transaction.id for entry in entries})
    new: dict[str, JournalEntry] = {}
    for entry in entries:
        if entry.transaction.id not in earlier:
            new.setdefault(entry.transaction.id, _flagged(entry))
    failure: spool.SpoolFailed | None = None
    try:
        locations = spool.append(list(new.values()))
    except spool.SpoolFailed as error:
        failure, locations = error, []
    metrics.JOURNAL_SPOOLED.inc(len(locations))
    for entry, location in zip(new.values(), locations, strict=False):
        known.add(entry.transaction.id, entry.digest, location)
    outcomes: list[Kept | MlserveError] = []
    answered: set[str] = set()
    for entry in entries:
        transaction_id = entry.transaction.id
        if transaction_id in earlier:
            outcomes.append(Kept(earlier[transaction_id]))
        elif failure is not None:
            outcomes.append(failure)
        elif transaction_id in answered:
            first = new[transaction_id]
            outcomes.append(Kept(Known(first.digest, msgspec.json.encode(first.response))))
        else:
            answered.add(transaction_id)
            outcomes.append(Kept())
    return outcomes


def find_spooled(entries: "Sequence[JournalEntry]") -> dict[str, Known]:
    """Decisions that wait in the spool under these ids: they stand, whether PostgreSQL has them yet or not."""
    found = known_decisions().find({entry.transaction.id for entry in entries})
    return {transaction_id: known for transaction_id, known in found.items() if known.response is not None}


def _flagged(entry: "JournalEntry") -> "JournalEntry":
    """What is stored later is what was answered now."""
    return msgspec.structs.replace(entry, response=with_degradation(entry.response, Degradation.DECISION_SPOOLED))
