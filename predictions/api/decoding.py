"""From the bytes of a request to what scoring and labelling take. One object of a list is read as one alone is."""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from mlserve.api.parameters import InvalidParameter, read_parameters, shown
from mlserve.errors import FieldError, MlserveError
from mlserve.event_time import wrong_moment
from predictions.api.envelopes import Envelope
from predictions.api.shapes import InvalidFields, RequestShape
from predictions.messages import Label, ScoreOptions, ScoreRequest, TransactionId

DECIMALS: Final = 4
"""What the ledger keeps of an amount."""
MOST_TRANSACTIONS: Final = 100
MOST_LABELS: Final = 1_000

__all__ = [
    "InvalidFields",
    "asks_for_reasons",
    "decode_labels",
    "decode_score_batch",
    "decode_score_options",
    "decode_score_request",
    "decode_transactions",
    "split_score_batch",
]


def _wrong_amount(amount: float, _now: datetime) -> str | None:
    return None if round(amount, DECIMALS) == amount else f"too exact: at most {DECIMALS} decimals"


_SCORE: Final = RequestShape(ScoreRequest, rules={"occurred_at": wrong_moment, "amount": _wrong_amount})
_LABEL: Final = RequestShape(Label, rules={"reported_at": wrong_moment})
_BATCH: Final = Envelope("transactions", most=MOST_TRANSACTIONS)
_LABELS: Final = Envelope("labels", most=MOST_LABELS)

decode_score_request: Final = _SCORE.decode


split_score_batch: Final = _BATCH.split
"""The text of each transaction. Raises `MalformedBody` or `BodyTooLarge` for the whole."""


def decode_transactions(items: Sequence[bytes], *, now: datetime) -> list[ScoreRequest | MlserveError]:
    """Each request in its place, or what `decode_score_request` says of it."""
    return _BATCH.decode(items, _SCORE, now=now)


def decode_score_batch(body: bytes, *, now: datetime) -> list[ScoreRequest | MlserveError]:
    """Both in one. Raises as `split_score_batch` does."""
    return decode_transactions(split_score_batch(body), now=now)


def decode_labels(body: bytes, *, now: datetime) -> list[Label | MlserveError]:
    """Each label in its place, or what is wrong with it. Raises `MalformedBody` or `BodyTooLarge` for the whole."""
    return _LABELS.decode(_LABELS.split(body), _LABEL, now=now)


_NO_OPTIONS: Final = ScoreOptions()
_INCLUDABLE: Final = ("features", "trace", "reasons")
_BOOLEANS: Final = {"true": True, "false": False}
_OPTIONS_KEPT: Final = 64
"""Spellings of a query string. Clients have a few; what is refused is not kept."""


@lru_cache(_OPTIONS_KEPT)
def decode_score_options(query: str) -> ScoreOptions:
    """The options in a query string; an empty `include` asks for nothing more.

    Raises `InvalidParameter` that names what is wrong and what is allowed.
    """
    if not query:
        return _NO_OPTIONS
    options: dict[str, bool] = {}
    for name, value in read_parameters(query, single=("dry_run",), repeatable=("include",)):
        if name == "include":
            options.update(dict.fromkeys(_included(value), True))
        elif value in _BOOLEANS:
            options["dry_run"] = _BOOLEANS[value]
        else:
            raise _bad_parameter("dry_run", value, "true, false")
    return ScoreOptions(**options)


def asks_for_reasons(query: str) -> bool:
    """Of a stored score, which has features and trace in any case. Raises `InvalidParameter`."""
    parameters = read_parameters(query, repeatable=("include",)) if query else ()
    return "reasons" in [part for _, value in parameters for part in _included(value)]


def _included(value: str) -> list[str]:
    parts = value.split(",") if value else []
    for part in parts:
        if part not in _INCLUDABLE:
            raise _bad_parameter("include", part, f"any of {', '.join(_INCLUDABLE)}, separated by commas")
    return parts


def decode_transaction_id(text: str) -> str:
    """The id in a path. Raises `InvalidParameter`."""
    try:
        decoded: Any = msgspec.convert(text, TransactionId)
    except msgspec.ValidationError as error:
        raise _bad_parameter("transaction_id", text, _SCORE.descriptions["transaction_id"]) from error
    return str(decoded)


def _bad_parameter(name: str, value: str, allowed: str) -> InvalidParameter:
    detail = f"{shown(value)} is not allowed; allowed: {allowed}"
    return InvalidParameter(f"{name}: {detail}.", errors=[FieldError(parameter=name, detail=detail)])
