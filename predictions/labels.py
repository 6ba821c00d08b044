"""Labels as the API takes them: what is wrong stays in its place, the rest goes into the ledger in one go."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from features.labels import Labelled, NewLabel, report_labels
from mlserve.errors import MlserveError
from predictions.messages import Label


def take_labels(labels: Sequence[Label | MlserveError], *, client: str, now: datetime) -> list[Labelled | MlserveError]:
    """What became of each, in their order. Raises Django's database errors, and then nothing was stored."""
    good = [(place, label) for place, label in enumerate(labels) if isinstance(label, Label)]
    reported = report_labels(
        [NewLabel(label.transaction_id, label.is_fraud, label.reported_at, label.report_id) for _, label in good],
        client=client,
        now=now,
    )
    outcomes: dict[int, Labelled | MlserveError] = {
        place: label for place, label in enumerate(labels) if isinstance(label, MlserveError)
    }
    outcomes |= {place: _placed(outcome, place) for (place, _), outcome in zip(good, reported, strict=True)}
    return [outcomes[place] for place in range(len(labels))]


def _placed(outcome: Labelled | MlserveError, place: int) -> Labelled | MlserveError:
    """Pointers of errors start at the body's own root."""
    if isinstance(outcome, Labelled) or not outcome.errors:
        return outcome
    errors = [
        msgspec.structs.replace(error, pointer=f"/labels/{place}{error.pointer or ''}") for error in outcome.errors
    ]
    return type(outcome)(outcome.detail, errors=errors)
