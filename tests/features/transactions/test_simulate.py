"""The simulated ledger: the same for the same seed, in order, with about the fraud that was asked for."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection

from features.models import Transaction
from features.transactions.ledger_batch import LedgerBatch, joined
from features.transactions.load import copy_transactions
from features.transactions.population import population_from_ledger, simulated_population
from features.transactions.simulate import LiveTraffic, generate

END = datetime(2026, 6, 1, 15, 30, 7, tzinfo=UTC)


def simulated(*, days: int = 60, seed: int = 1, end: datetime = END, per_day: float = 3340) -> LedgerBatch:
    population = simulated_population(customers=2000, merchants=1000, seed=seed)
    return joined(list(generate(population, start=end - timedelta(days=days), end=end, per_day=per_day, seed=seed)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_default_ledger(seed: int) -> None:
    """About 200,000 rows within the span, in order of time, ids rising, 0.5 to 1.5 % fraud, few merchants for most."""
    batch = simulated(seed=seed)
    assert 190_000 < len(batch) < 230_000
    assert 0.005 < (batch.labels == 1).mean() < 0.015
    assert (np.diff(batch.occurred_at) >= np.timedelta64(0)).all()
    assert batch.occurred_at[0] >= np.datetime64("2026-04-02T15:30:07")
    assert batch.occurred_at[-1] < np.datetime64("2026-06-01T15:30:07")
    ordered = sorted(batch.transaction_ids, key=lambda text: (len(text), text.encode()))
    assert ordered == list(batch.transaction_ids)
    assert len(set(ordered)) == len(ordered)
    visits = np.sort(np.unique(np.array(batch.merchant_ids), return_counts=True)[1])[::-1]
    assert visits[:100].sum() > 0.5 * len(batch)
    assert (batch.amounts > 0).all()
    assert np.array_equal(batch.amounts, np.round(batch.amounts, 2))


def test_fraud_pays_more() -> None:
    """A model can learn from it: fraud is dearer, and gathers at merchants and customers."""
    batch = simulated()
    fraud = batch.labels == 1
    assert batch.amounts[fraud].mean() > 2 * batch.amounts[~fraud].mean()
    _customers, counts = np.unique(np.array(batch.customer_ids)[fraud], return_counts=True)
    assert np.max(counts) >= 10


def test_spans_agree_where_they_overlap() -> None:
    """A simulation that ends later has the same transactions before, under the same ids."""
    early, late = simulated(days=3), simulated(days=4, end=END + timedelta(days=1))
    count = len(early)
    assert list(early.transaction_ids) == list(late.transaction_ids)[:count]
    assert np.array_equal(early.amounts, late.amounts[:count])
    assert list(early.merchant_ids) == list(late.merchant_ids)[:count]
    assert np.array_equal(early.labels, late.labels[:count])
    assert simulated(days=3, seed=2).customer_ids != early.customer_ids


def test_people_buy_by_day_and_near_home() -> None:
    """Nights are quiet, and neighbours share merchants that others do not know."""
    batch = simulated(days=14)
    hours = batch.occurred_at.astype("datetime64[h]").astype(int) % 24
    assert (hours < 6).mean() < 0.1
    population = simulated_population(customers=2000, merchants=1000, seed=1)
    shares = np.diff(population.choice, axis=1)
    assert np.abs(shares[0] - shares[-1]).sum() > 0.5


def test_live_traffic_is_what_the_api_takes() -> None:
    """The same for the same seed, with ids that rise even if the clock stands still."""
    population = simulated_population(customers=50, merchants=20, seed=1)
    traffic, again = LiveTraffic(population, 7), LiveTraffic(population, 7)
    requests = [traffic.next(END) for _ in range(3000)]
    assert requests == [again.next(END) for _ in range(3000)]
    ids = [request["transaction_id"] for request in requests]
    assert ids == sorted(set(ids))
    assert requests[0].keys() == {
        "transaction_id",
        "occurred_at",
        "customer_id",
        "merchant_id",
        "amount",
        "currency",
    }
    assert requests[0]["occurred_at"] == "2026-06-01T15:30:07.000000Z"
    assert json.loads(json.dumps(requests)) == requests


def run_simulation(*options: str) -> dict[str, Any]:
    out = io.StringIO()
    call_command("simulate_transactions", *options, "--json", stdout=out, stderr=io.StringIO())
    result: dict[str, Any] = json.loads(out.getvalue())
    return result


@pytest.mark.django_db
def test_the_command_adds_only_what_is_new() -> None:
    """A day later the same command adds a day; another population under the same seed is refused whole."""
    small = ("--customers", "50", "--merchants", "20", "--seed", "3")
    first = run_simulation(*small, "--days", "5", "--end", "2026-06-01T00:00:00Z")
    second = run_simulation(*small, "--days", "6", "--end", "2026-06-02")
    assert first["rows"] == first["imported"] == second["already_known"] > 200
    assert second["imported"] == second["rows"] - first["rows"] > 0
    with pytest.raises(CommandError, match="Choose another"):
        run_simulation("--customers", "60", "--merchants", "20", "--seed", "3", "--days", "9", "--end", "2026-06-02")
    assert Transaction.objects.count() == second["rows"]


@pytest.mark.django_db
def test_a_population_can_be_taken_from_the_ledger() -> None:
    """Traffic from an imported ledger has its customers and merchants, and amounts like theirs."""
    batch = simulated(days=1, per_day=2000)
    copy_transactions(connection, batch)
    population = population_from_ledger(connection)
    requests = [LiveTraffic(population, 1).next(END) for _ in range(10)]
    assert {request["customer_id"] for request in requests} <= set(batch.customer_ids)
    traffic = LiveTraffic(population, 1)
    amounts = [traffic.next(END)["amount"] for _ in range(2000)]
    assert 0.5 < np.median(amounts) / np.median(batch.amounts) < 2


@pytest.mark.django_db
def test_an_empty_ledger_has_no_population() -> None:
    """The error says what to do."""
    with pytest.raises(ValueError, match="import or simulate"):
        population_from_ledger(connection)


@pytest.mark.django_db
def test_ids_cannot_break_out_of_their_column() -> None:
    """A batch that was never validated cannot shift its columns."""
    batch = simulated(days=1, per_day=5)
    hostile = LedgerBatch(
        transaction_ids=["x\ty", *batch.transaction_ids[1:]],
        occurred_at=batch.occurred_at,
        customer_ids=batch.customer_ids,
        merchant_ids=batch.merchant_ids,
        amounts=batch.amounts,
        currencies=batch.currencies,
        labels=batch.labels,
    )
    with pytest.raises(ValueError, match="tab"):
        copy_transactions(connection, hostile)
