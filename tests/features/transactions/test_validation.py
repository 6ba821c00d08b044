"""Which cells are accepted, and that no bytes at all make the readers or the validator fail."""

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.transactions.csv_rows import CsvTransactions
from features.transactions.layouts import FIELDS, LayoutError
from features.transactions.rejects import printable
from features.transactions.rows import Cells, FileError, RawBatch
from features.transactions.validation import Checked, check_rows

GOOD: Cells = ("t1", "2026-01-31 12:00:00", "c1", "m1", "12.50", "EUR", "1")


def check(cells: Mapping[str, str | None], *, shift: timedelta = timedelta(0)) -> Checked:
    values = [cells.get(field, good) for field, good in zip(FIELDS, GOOD, strict=True)]
    return check_rows(RawBatch(lines=[7], rows=[tuple(values)], unreadable=[], fraction=1.0), shift=shift)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("transaction_id", "", "missing"),
        ("transaction_id", None, "missing"),
        ("customer_id", "x" * 65, "longer than 64"),
        ("merchant_id", "a b", "letters, digits"),
        ("merchant_id", "m1\n", "letters, digits"),
        ("transaction_id", "..", "dots alone"),
        ("customer_id", " . ", "dots alone"),
        ("customer_id", "a\0b", "NUL"),
        ("customer_id", "caf\udce9", "UTF-8"),
        ("occurred_at", "yesterday", "not a time"),
        ("occurred_at", "1529280015", "not a time"),
        ("occurred_at", "2026-02-30 00:00:00", "not a time"),
        ("occurred_at", "1969-12-31T23:59:59Z", "1970 to 2200"),
        ("occurred_at", "1970-01-01T00:30:00+01:00", "1970 to 2200"),
        ("occurred_at", "2201-01-01 00:00:00", "1970 to 2200"),
        ("occurred_at", "0001-01-01T00:00:00+05:00", "1970 to 2200"),
        ("amount", "nan", "missing"),
        ("amount", "-inf", "finite"),
        ("amount", "-0.01", "negative"),
        ("amount", "1000000000.0001", "more than 1,000,000,000"),
        ("amount", "1e999", "more than 1,000,000,000"),
        ("amount", "1.00001", "more than 4 decimals"),
        ("amount", "1e-300", "more than 4 decimals"),
        ("amount", "12,50", "not a number"),
        ("amount", "1_000", "not a number"),
        ("amount", "\u0661\u0662", "not a number"),
        ("currency", "eur", "currency"),
        ("is_fraud", "2", "label"),
        ("is_fraud", "maybe", "label"),
    ],
)
def test_bad_cells_are_named(field: str, value: str | None, reason: str) -> None:
    """A bad cell refuses its row, with its line, its field and the reason."""
    (reject,) = check({field: value}).rejects
    assert (reject.line, reject.field) == (7, field)
    assert reason in reject.reason


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("1000000000", 1e9),
        ("999999999.9999", 999_999_999.9999),
        ("1.50000", 1.5),
        (" 2.5 ", 2.5),
        ("1.5e2", 150.0),
        ("0.30000000000000004", 0.3),
    ],
)
def test_amounts(text: str, amount: float) -> None:
    """Every spelling of a decimal with at most four decimals is taken, float noise included."""
    assert check({"amount": text}).good.amounts.tolist() == [amount]


@pytest.mark.parametrize(
    "text",
    ["2026-01-31T12:00:00Z", "2026-01-31 13:00:00+01:00", "2026-01-31T12:00", "2026-01-31 12:00:00.000000499"],
)
def test_times_are_utc(text: str) -> None:
    """With a zone, without one, to the minute or to the nanosecond: the same moment in UTC."""
    assert check({"occurred_at": text}).good.occurred_at[0].item().replace(tzinfo=UTC) == datetime(
        2026, 1, 31, 12, tzinfo=UTC
    )


def test_a_shift_that_leaves_the_range_is_refused() -> None:
    """The range holds for the shifted time."""
    assert check({}, shift=timedelta(weeks=52 * 200)).rejects[0].field == "occurred_at"


_cell = st.one_of(st.none(), st.text(max_size=80), st.sampled_from([cell for cell in GOOD if cell]))


@given(cells=st.tuples(*[_cell] * 7))
def test_any_text_is_loaded_or_rejected(cells: Cells) -> None:
    """No row is lost and none is both loaded and rejected, whatever its cells hold."""
    checked = check_rows(RawBatch(lines=[2], rows=[cells], unreadable=[], fraction=1.0))
    assert len(checked.good) + len(checked.rejects) == 1
    assert all(len(printable(reject.value)) <= 200 for reject in checked.rejects)


@given(body=st.binary(max_size=400), quoted=st.lists(st.sampled_from(['"', ",", "\n", "\r", "a", "\udcff", "\0"])))
def test_any_bytes_can_be_read(body: bytes, quoted: list[str]) -> None:
    """Any bytes after a header become rows and rejects, in the order of their lines."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "any.csv")
        path.write_bytes((",".join(FIELDS) + "\n").encode() + "".join(quoted).encode("utf-8", "surrogateescape") + body)
        for batch in CsvTransactions(path, layout=None, mapping={}).batches(rows=3):
            checked = check_rows(batch)
            lines = [reject.line for reject in checked.rejects]
            assert lines == sorted(lines)
            assert all(line >= 2 for line in [*lines, *checked.lines])


@given(content=st.binary(max_size=200))
def test_any_header_is_read_or_refused(content: bytes) -> None:
    """A file that is no transaction file is refused with one of two errors."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "any.csv")
        path.write_bytes(content)
        with pytest.raises((FileError, LayoutError)):
            CsvTransactions(path, layout=None, mapping={})


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@x", "\tx", "\r=1"])
def test_rejected_values_are_no_formulas(value: str) -> None:
    """A spreadsheet that opens the rejects file computes nothing."""
    assert printable(value).startswith("'")


def test_rejected_values_stay_on_one_line() -> None:
    """Control characters, bytes that are no UTF-8 and direction marks are escaped."""
    assert printable("a\n\0\udcff\u202eb") == "a\\x0a\\x00\\xff\\u202eb"
