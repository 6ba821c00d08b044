"""Amounts as people write them: what the column proves is read so, what can be read in two ways loads nothing."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st

from features.models import Transaction
from features.transactions.number_style import NumberStyle
from features.transactions.readers import open_transactions
from tests.features.transactions.files import HEADER, csv_file, run_import

pytestmark = pytest.mark.django_db(transaction=True)


def _file(path: Path, *amounts: str, delimiter: str = ";") -> Path:
    lines = [
        f"t{number},2026-01-02 10:00:00,c1,m1,{{amount}},EUR,0".replace(",", delimiter).format(amount=amount)
        for number, amount in enumerate(amounts)
    ]
    return csv_file(path, *lines, header=HEADER.replace(",", delimiter))


def _amounts() -> list[float]:
    return [float(amount) for amount in Transaction.objects.order_by("id").values_list("amount", flat=True)]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["12,50", "1.500", "3"], [12.5, 1500.0, 3.0]),
        (["1.234,5", "0,333"], [1234.5, 0.333]),
        (["1.234.567", "1.500"], [1_234_567.0, 1500.0]),
        (["1 234,56", "7,00"], [1234.56, 7.0]),
        (["1\u00a0234,56", "1\u202f000"], [1234.56, 1000.0]),
        (["12.50", "1.500"], [12.5, 1.5]),
        (["12.50", "1,500"], [12.5, 1500.0]),
        (["1,234.50", "2,000"], [1234.5, 2000.0]),
        (["1'234.50", "9"], [1234.5, 9.0]),
        (["0.500", "1.500"], [0.5, 1.5]),
        (["1234.500", "1.500"], [1234.5, 1.5]),
        (["1e3", "7"], [1000.0, 7.0]),
        (["15", "1500"], [15.0, 1500.0]),
    ],
)
def test_what_the_column_proves_is_how_it_is_read(tmp_path: Path, written: list[str], read: list[float]) -> None:
    """Wherever in the file the proof stands."""
    for amounts, expected in ((written, read), (written[::-1], read[::-1])):
        Transaction.objects.all().delete()
        assert run_import(_file(tmp_path / "a.csv", *amounts))["rejected"] == 0
        assert _amounts() == expected


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (["7", "1.500"], "whether '1.500' in line 3 is 1500 or 1.500"),
        (["1,500"], "whether '1,500' in line 2 is 1500 or 1.500"),
        (["1.500", "2,500"], "is 1500 or 1.500"),
        (["12,50", "12.50"], "two styles: '12,50' in line 2 and '12.50' in line 3"),
        (["1.234,50", "8", "1,234.50"], "two styles: '1.234,50' in line 2 and '1,234.50' in line 4"),
        (["1,234,567", "12,50"], "two styles"),
    ],
)
def test_what_can_be_read_in_two_ways_loads_nothing(tmp_path: Path, written: list[str], says: str) -> None:
    """The message shows which text it is, and how to say what it means; that is obeyed."""
    file = _file(tmp_path / "a.csv", *written)
    with pytest.raises(CommandError, match=says) as refusal:
        run_import(file)
    assert refusal.value.returncode == 2
    assert "--decimal" in str(refusal.value) and "nothing was loaded" in str(refusal.value)
    assert not Transaction.objects.exists()
    assert run_import(file, "--decimal", "comma", "--thousands", "point")["rows"] == len(written)


def test_what_was_said_is_obeyed(tmp_path: Path) -> None:
    """Also against what the column would have proved; what is no number of that style is rejected and never guessed."""
    file = _file(tmp_path / "a.csv", "1.500", "7,25", "7.25", "1,500")
    result = run_import(file, "--decimal", "comma", "--thousands", "point")
    assert (result["imported"], result["rejected"]) == (3, 1)
    assert _amounts() == [1500.0, 7.25, 1.5]
    assert result["amounts"] == "decimal comma, thousands point"
    Transaction.objects.all().delete()
    assert run_import(file, "--decimal", "point")["imported"] == 2
    assert _amounts() == [1.5, 7.25]


def test_numbers_of_parquet_are_numbers(tmp_path: Path) -> None:
    """Text in it is as text in a CSV file."""
    columns = {
        "transaction_id": ["t0"],
        "occurred_at": ["2026-01-02T10:00:00Z"],
        "customer_id": ["c1"],
        "merchant_id": ["m1"],
    }
    pq.write_table(pa.table({**columns, "amount": [1.5]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({**columns, "amount": ["1.500"]}), tmp_path / "text.parquet")
    assert open_transactions(tmp_path / "numbers.parquet", layout=None, mapping={}).amounts_are_numbers
    assert run_import(tmp_path / "numbers.parquet")["imported"] == 1
    with pytest.raises(CommandError, match=r"1\.500"):
        run_import(tmp_path / "text.parquet")


def test_a_dry_run_shows_what_would_be_read(tmp_path: Path) -> None:
    """Ten rows, with the style; nothing is loaded, and no rejects file is written."""
    file = _file(tmp_path / "a.csv", *[f"{number},50" for number in range(1, 15)], "x")
    out = io.StringIO()
    call_command("import_transactions", str(file), "--dry-run", "--json", stdout=out)
    shown = json.loads(out.getvalue())
    assert shown["amounts"] == "decimal comma, thousands none"
    assert [row["amount"] for row in shown["rows"]] == [number + 0.5 for number in range(1, 11)]
    assert shown["rows"][0]["line"] == 2 and shown["rows"][0]["customer_id"] == "c1"
    out = io.StringIO()
    call_command("import_transactions", str(file), "--dry-run", stdout=out)
    assert "nothing was loaded" in out.getvalue() and "amount=1.5" in out.getvalue()
    assert not Transaction.objects.exists()
    assert list(tmp_path.glob("*.rejects.csv")) == []


def test_marks_that_are_the_same_are_none(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="both") as refusal:
        run_import(_file(tmp_path / "a.csv", "1"), "--decimal", "comma", "--thousands", "comma")
    assert refusal.value.returncode == 2


@given(
    amount=st.integers(0, 10**9),
    decimals=st.integers(0, 9999),
    style=st.sampled_from([(",", "."), (".", ","), (",", " "), (".", "'"), (",", "")]),
)
def test_what_is_written_in_a_style_is_read_in_it(amount: int, decimals: int, style: tuple[str, str]) -> None:
    """Whatever the number."""
    decimal, thousands = style
    text = f"{amount:,}".replace(",", thousands) + f"{decimal}{decimals:04d}"
    assert float(NumberStyle(decimal, thousands).plain(text)) == float(f"{amount}.{decimals:04d}")
