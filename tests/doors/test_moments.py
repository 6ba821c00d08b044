"""One rule for the moment of a payment, whichever door it comes through."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from features.models import Transaction
from mlserve.event_time import moment_of
from predictions.api.decoding import decode_score_request
from tests.features.transactions.files import csv_file, rejects_of, row, run_import

_PAST = st.datetimes(datetime(2000, 1, 1), datetime(2026, 1, 1))  # noqa: DTZ001 - as hypothesis takes them


@given(moment=_PAST, digits=st.text("0123456789", max_size=9))
def test_the_importer_rounds_as_the_api_does(moment: datetime, digits: str) -> None:
    """However many decimals a second has: a payment that came through both doors has one moment."""
    text = f"{moment:%Y-%m-%dT%H:%M:%S}{'.' + digits if digits else ''}Z"
    body = {
        "transaction_id": "t1",
        "occurred_at": text,
        "customer_id": "c1",
        "merchant_id": "m1",
        "amount": 1,
    }
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert moment_of(text) == decode_score_request(json.dumps(body).encode(), now=now).occurred_at


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("year", [2099, 2199])
def test_a_row_of_the_future_is_refused(tmp_path: Path, year: int) -> None:
    """It would empty its customer's windows; an hour ahead is what clocks and zones do, and passes."""
    soon = f"{timezone.now() + timedelta(hours=1):%Y-%m-%d %H:%M:%S}"
    result = run_import(csv_file(tmp_path / "a.csv", row(1, at=f"{year}-01-01 00:00:00"), row(2, at=soon)))
    (reject,) = rejects_of(result)
    assert (reject["line"], reject["field"]) == ("2", "occurred_at")
    assert "more than a day ahead" in reject["reason"]
    assert list(Transaction.objects.values_list("id", flat=True)) == ["t2"]


@pytest.mark.django_db(transaction=True)
def test_one_row_of_the_future_does_not_move_the_others(tmp_path: Path) -> None:
    """The newest row that could have happened falls into the last week."""
    file = csv_file(tmp_path / "a.csv", row(1, at="2018-08-14 00:00:00"), row(2, at="2199-01-01 00:00:00"))
    result = run_import(file, "--shift-to-now")
    assert (result["imported"], result["rejected"]) == (1, 1)
    assert timezone.now() - timedelta(days=7) <= Transaction.objects.get().occurred_at <= timezone.now()


@pytest.mark.django_db(transaction=True)
def test_early_rows_are_named(tmp_path: Path) -> None:
    """Seconds taken for milliseconds land in January 1970."""
    assert run_import(csv_file(tmp_path / "a.csv", row(1, at="1970-01-18 00:00:00"), row(2)))["early"] == 1


@pytest.mark.django_db(transaction=True)
def test_no_simulation_ends_in_the_future() -> None:
    """The rule of the other doors."""
    end = f"{timezone.now() + timedelta(days=2):%Y-%m-%d}"
    with pytest.raises(CommandError, match="more than a day ahead") as error:
        call_command("simulate_transactions", "--customers", "5", "--days", "1", "--end", end, stdout=io.StringIO())
    assert error.value.returncode == 2
