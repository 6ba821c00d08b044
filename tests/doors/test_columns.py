"""Columns that look like a field and are not called so: asked for, never passed over without a word."""

from pathlib import Path

import pytest
from django.core.management import CommandError

from features.models import Transaction
from features.transactions.layouts import OPTIONAL_FIELDS, LayoutError, parse_mapping
from tests.features.transactions.files import HEADER, csv_file, run_import

pytestmark = pytest.mark.django_db(transaction=True)
ROW = "t1,2026-01-02 10:00:00,c1,m1,10.00,USD,1"


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("Currency", "currency"),
        ("CURRENCY_CODE", "currency"),
        ("isFraud", "is_fraud"),
        ("IS FRAUD", "is_fraud"),
        ("Class", "is_fraud"),
        ("TX_FRAUD", "is_fraud"),
    ],
)
def test_a_lookalike_is_asked_for(tmp_path: Path, column: str, field: str) -> None:
    """Both answers that there are can be given; nothing is loaded until then."""
    file = csv_file(tmp_path / "a.csv", ROW, header=HEADER.replace(field, column))
    with pytest.raises(CommandError, match=f"--map {field}={column}") as refusal:
        run_import(file)
    assert refusal.value.returncode == 2
    assert not Transaction.objects.exists()
    ignored = run_import(file, "--map", f"{field}=")
    assert ignored["unused_columns"] == [column]
    row = Transaction.objects.get()
    assert (row.currency, row.is_fraud) == (("EUR", True) if field == "currency" else ("USD", None))
    row.delete()
    assert run_import(file, "--map", f"{field}={column}")["unused_columns"] == []
    row = Transaction.objects.get()
    assert (row.currency, row.is_fraud) == ("USD", True)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    """By name."""
    file = csv_file(tmp_path / "a.csv", f"{ROW},x,y", header=f"{HEADER},city,Job")
    assert run_import(file)["unused_columns"] == ["city", "Job"]


def test_only_an_optional_field_may_be_without_a_column() -> None:
    assert parse_mapping([f"{field}=" for field in OPTIONAL_FIELDS]) == dict.fromkeys(OPTIONAL_FIELDS, "")
    with pytest.raises(LayoutError, match="FIELD=COLUMN"):
        parse_mapping(["amount="])
