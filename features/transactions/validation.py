"""Which rows may enter the ledger. One rule per field; never an exception for any text."""

import math
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from features.transactions.layouts import FIELDS
from features.transactions.ledger_batch import LABEL_UNKNOWN, LedgerBatch
from features.transactions.number_style import PLAIN, NumberStyle
from features.transactions.rows import Cells, RawBatch, Reject
from mlserve.event_time import EARLIEST, moment_of, wrong_moment
from mlserve.null_words import NULL_WORDS

ID_CHARACTERS_MAX = 64
# The same as `EntityId` and `TransactionId` of predictions/messages.py, which this app may not import.
_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9._:-]{1,64}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?(?: ?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?))?)?"
)
_PLAIN_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?")
"""What most files hold, and no zone to reckon with: half the time of the general way."""
_EARLIEST = EARLIEST.replace(tzinfo=None)  # UTC, as all times are once they are parsed
_LATEST = datetime(2200, 12, 31, 23, 59, 59, 999_999)  # noqa: DTZ001
_PLAIN_AMOUNT = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,4})?")
_AMOUNT = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
AMOUNT_MAX = 1_000_000_000
AMOUNT_DECIMALS = 4
_NOT_FINITE = frozenset(("nan", "inf", "infinity", "-inf", "-infinity", "+inf", "+infinity", "+nan", "-nan"))
_FLOAT_NOISE_ULPS = 64
"""0.1 + 0.2 written out by a program is 0.30000000000000004; sums of some dozen terms stay within this."""
_CURRENCY = re.compile(r"[A-Z]{3}")
DEFAULT_CURRENCY = "EUR"
_LABELS: dict[str, int] = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), 1),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n"), 0),
    "": LABEL_UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Checked:
    """`lines` gives the place in the file of each row of `good`."""

    good: LedgerBatch
    lines: list[int]
    rejects: list[Reject]


class _Refused(Exception):
    """Why a cell cannot be accepted."""


def check_rows(
    batch: RawBatch,
    *,
    shift: timedelta = timedelta(0),
    now: datetime | None = None,
    null_words: AbstractSet[str] = NULL_WORDS,
    style: NumberStyle = PLAIN,
) -> Checked:
    """Splits a batch. A refused row is named once, with its first field at fault; `shift` is added to every time.

    With `now` (aware), what lies more than a day ahead of it after the shift is refused; what is to be loaded needs it.
    Cells that are one of `null_words`, in whatever case of the letters, are as empty ones. Amounts are
    written in `style`.
    """
    lines: list[int] = []
    rejects = list(batch.unreadable)
    ids: list[str] = []
    times: list[datetime] = []
    customers: list[str] = []
    merchants: list[str] = []
    amounts: list[float] = []
    currencies: list[str] = []
    labels: list[int] = []
    plain = style.is_plain
    for line, read in zip(batch.lines, batch.rows, strict=True):
        cells = _without_null_words(read, null_words)
        at = 0
        try:
            transaction = _id(cells[0])
            at = 1
            moment = _moment(cells[1], shift, now)
            at = 2
            customer = _id(cells[2])
            at = 3
            merchant = _id(cells[3])
            at = 4
            amount = _amount(cells[4] if plain or cells[4] is None else style.plain(cells[4].strip(" ")))
            at = 5
            currency = _currency(cells[5])
            at = 6
            label = _label(cells[6])
        except _Refused as refused:
            rejects.append(Reject(line, FIELDS[at], str(refused), read[at] or ""))
            continue
        lines.append(line)
        ids.append(transaction)
        times.append(moment)
        customers.append(customer)
        merchants.append(merchant)
        amounts.append(amount)
        currencies.append(currency)
        labels.append(label)
    rejects.sort(key=lambda reject: reject.line)
    good = LedgerBatch(
        transaction_ids=ids,
        occurred_at=np.array(times, dtype="datetime64[us]"),
        customer_ids=customers,
        merchant_ids=merchants,
        amounts=np.array(amounts, dtype=np.float64),
        currencies=currencies,
        labels=np.array(labels, dtype=np.int8),
    )
    return Checked(good, lines, rejects)


def as_read(checked: Checked) -> list[dict[str, Any]]:
    """The good rows as they would be loaded, for people: by field, with their line."""
    good = checked.good
    times = np.datetime_as_string(good.occurred_at, timezone="UTC").tolist()
    labels = {1: True, 0: False, LABEL_UNKNOWN: None}
    rows = zip(
        checked.lines,
        good.transaction_ids,
        times,
        good.customer_ids,
        good.merchant_ids,
        good.amounts.tolist(),
        good.currencies,
        (labels[label] for label in good.labels.tolist()),
        strict=True,
    )
    return [dict(zip(("line", *FIELDS), row, strict=True)) for row in rows]


def _without_null_words(cells: Cells, null_words: AbstractSet[str]) -> Cells:
    if not any(cell is not None and _is_null(cell, null_words) for cell in cells):
        return cells
    a, b, c, d, e, f, g = ("" if cell is None or _is_null(cell, null_words) else cell for cell in cells)
    return a, b, c, d, e, f, g


def _is_null(cell: str, null_words: AbstractSet[str]) -> bool:
    return cell.strip(" ").lower() in null_words


def _text(cell: str | None) -> str:
    return "" if cell is None else cell.strip(" ")


def _refuse_unreadable(text: str) -> None:
    if "\0" in text:
        raise _Refused("holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _Refused("is not valid UTF-8")


def _id(cell: str | None) -> str:
    if cell is not None and _ID.fullmatch(cell):
        return cell
    text = _text(cell)
    if not text:
        raise _Refused("is missing")
    if _ID.fullmatch(text):
        return text
    _refuse_unreadable(text)
    if len(text) > ID_CHARACTERS_MAX:
        raise _Refused(f"is longer than {ID_CHARACTERS_MAX} characters")
    if not text.strip("."):
        raise _Refused("is made of dots alone")
    raise _Refused("may hold letters, digits and . _ : - only")


def _moment(cell: str | None, shift: timedelta, now: datetime | None) -> datetime:
    """In UTC, without zone, as numpy wants it, rounded to the microsecond."""
    try:
        if cell is not None and _PLAIN_TIME.fullmatch(cell):
            moment = moment_of(cell)
        else:
            moment = _general_moment(_text(cell))
        if shift:
            moment += shift
    except ValueError as error:
        raise _Refused(f"is not a time: {error}") from error
    except OverflowError as error:
        raise _Refused("is outside the years 1970 to 2200") from error
    if not _EARLIEST <= moment <= _LATEST:
        raise _Refused("is outside the years 1970 to 2200")
    wrong = None if now is None else wrong_moment(moment.replace(tzinfo=UTC), now)
    if wrong:
        raise _Refused(f"is {wrong}")
    return moment


def _general_moment(text: str) -> datetime:
    if not text:
        raise _Refused("is missing")
    if not _TIME.fullmatch(text):
        _refuse_unreadable(text)
        raise _Refused("is not a time (ISO 8601, such as 2026-01-31T23:59:59Z; without a zone it is UTC)")
    moment = moment_of(text.replace(" ", "T", 1).replace(" ", ""))
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _amount(cell: str | None) -> float:
    """A float holds every amount up to the maximum with four decimals (13 digits) so that it reads back the same."""
    if cell is not None and _PLAIN_AMOUNT.fullmatch(cell):
        return float(cell)
    text = _text(cell)
    if not text:
        raise _Refused("is missing")
    if not _AMOUNT.fullmatch(text):
        _refuse_unreadable(text)
        if text.lower() in _NOT_FINITE:
            raise _Refused("is not a finite number")
        raise _Refused("is not a number (digits, with a decimal point)")
    value = Decimal(text)
    if value < 0:
        raise _Refused("is negative")
    if value > AMOUNT_MAX:
        raise _Refused(f"is more than {AMOUNT_MAX:,}")
    number = float(value)
    rounded = round(number, AMOUNT_DECIMALS)
    exact = value == round(value, AMOUNT_DECIMALS)
    if not exact and (number == 0 or abs(number - rounded) > _FLOAT_NOISE_ULPS * math.ulp(number)):
        raise _Refused(f"has more than {AMOUNT_DECIMALS} decimals")
    return abs(rounded)  # -0.0


def _currency(cell: str | None) -> str:
    if cell is None:
        return DEFAULT_CURRENCY
    text = _text(cell)
    if not text:
        return DEFAULT_CURRENCY
    if not _CURRENCY.fullmatch(text):
        _refuse_unreadable(text)
        raise _Refused("is not a currency code of three capital letters")
    return text


def _label(cell: str | None) -> int:
    if cell is None:
        return LABEL_UNKNOWN
    if cell in _LABELS:
        return _LABELS[cell]
    text = _text(cell).lower()
    try:
        return _LABELS[text]
    except KeyError:
        _refuse_unreadable(text)
        raise _Refused("is not a label (1, 0, true, false, yes, no or empty)") from None
