"""What a file has where it has nothing, and a file of which too little could be read."""

from pathlib import Path

import pytest
from django.core.management import CommandError

from features.models import Transaction
from features.transactions.layouts import FIELDS
from features.transactions.ledger_batch import LABEL_UNKNOWN
from features.transactions.rows import RawBatch
from features.transactions.validation import Checked, check_rows
from mlserve.null_words import NULL_WORDS
from tests.features.transactions.files import csv_file, row, run_import

WORDS = sorted([*NULL_WORDS, *map(str.upper, NULL_WORDS), "None", " NaN ", "\\N"])


def _check(field: str, value: str) -> Checked:
    cells = dict(zip(FIELDS, ("t1", "2026-01-31 12:00:00", "c1", "m1", "1", "EUR", "1"), strict=True)) | {field: value}
    values = tuple(cells[field] for field in FIELDS)
    return check_rows(RawBatch(lines=[2], rows=[values], unreadable=[], fraction=1.0))  # type: ignore[list-item]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("field", ["transaction_id", "occurred_at", "customer_id", "merchant_id", "amount"])
def test_a_word_for_nothing_is_no_value(field: str, word: str) -> None:
    """All payments without a customer are not those of one customer called nan."""
    (reject,) = _check(field, word).rejects
    assert (reject.field, reject.reason, reject.value) == (field, "is missing", word)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_nothing_is_no_label(word: str) -> None:
    """The payment is loaded, unlabelled; without a currency it is EUR."""
    assert _check("is_fraud", word).good.labels.tolist() == [LABEL_UNKNOWN]
    assert _check("currency", word).good.currencies == ["EUR"]


@pytest.mark.django_db(transaction=True)
def test_the_words_can_be_chosen(tmp_path: Path) -> None:
    """Somebody has a shop called NA, and writes `unknown` for no label."""
    file = csv_file(tmp_path / "a.csv", row(1, label="Unknown").replace("m1", "NA"))
    assert run_import(file, "--null", "unknown")["imported"] == 1
    assert Transaction.objects.get().merchant_id == "NA"


@pytest.mark.django_db(transaction=True)
def test_too_many_rejects_are_a_failure(tmp_path: Path) -> None:
    """More than the stated share ends with 1 and the commonest reasons; what was good is loaded."""
    file = csv_file(tmp_path / "a.csv", *map(row, range(98)), row(98, amount="x"), row(99, amount="y"))
    with pytest.raises(CommandError, match=r"more than 1 %.*the commonest: amount is not a number.*\(2\)") as error:
        run_import(file, "--max-rejected", "1")
    assert error.value.returncode == 1
    assert Transaction.objects.count() == 98
    assert run_import(file, "--max-rejected", "2")["rejected"] == 2


@pytest.mark.parametrize("share", ["-1", "101", "nan"])
def test_a_share_is_a_percentage(tmp_path: Path, share: str) -> None:
    """Anything else is a usage error."""
    with pytest.raises(CommandError) as error:
        run_import(csv_file(tmp_path / "a.csv", row(1)), "--max-rejected", share)
    assert error.value.returncode == 2
