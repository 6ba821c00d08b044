import json
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from features.activity import load_rows, update_activity
from features.compute import VectorPlan, transaction_tag
from features.definitions import ALL_FEATURES, BASELINE_FEATURES, BUILT_GROUPS, GROUPS
from features.models import Transaction
from features.point_in_time import TrainingSet, training_vectors, vectors_of
from features.refresh import build
from tests.features.ledgers import START, payment, record, some_payments

pytestmark = pytest.mark.django_db
FIRST, LAST = START.date(), START.date() + timedelta(days=49)
_TICK = timedelta(microseconds=1)


def _serve(plan: VectorPlan, payment: Transaction, *, is_recorded: bool = True) -> tuple[float, ...]:
    """The vector by the path of a score: stored rows, then the scalar functions."""
    ids = {"customer": payment.customer_id, "merchant": payment.merchant_id}
    with connection.cursor() as cursor:
        loaded = load_rows(cursor, [(name, ids[GROUPS[name].entity]) for name in plan.groups])
    derived = plan.derive(
        occurred_at=payment.occurred_at.timestamp(),
        amount=float(payment.amount),
        tag=transaction_tag(payment.id) if is_recorded else None,
        groups={row.group: row.values for row in loaded.rows},
    )
    assert not derived.incomplete
    return derived.values


def _score(payment: Transaction) -> None:
    """What scoring does to the source."""
    with transaction.atomic(), connection.cursor() as cursor:
        record([payment])
        update_activity(cursor, [payment.customer_id], payment.occurred_at)


def _by_id(vectors: TrainingSet) -> dict[str, Sequence[float]]:
    return dict(zip(vectors.transaction_ids.tolist(), vectors.X.tolist(), strict=True))


def test_serving_gives_the_vectors_that_training_sees() -> None:
    """All features, for every transaction of the last days, in the order of the ledger: online equals offline.

    Whenever the builds of a day run: here at the moment of each transaction, from a ledger that has all before it.
    """
    payments = some_payments(400, days=50)
    online_from = START + timedelta(days=46)
    record([row for row in payments if row.occurred_at < online_from])
    plan = VectorPlan(ALL_FEATURES)
    served: dict[str, tuple[float, ...]] = {}
    build(["customer_activity"], as_of=online_from - _TICK, now=online_from)
    for row in (row for row in payments if row.occurred_at >= online_from):
        build(set(plan.groups) - {"customer_activity"}, as_of=row.occurred_at, now=row.occurred_at)
        before = _serve(plan, row, is_recorded=False)
        _score(row)
        served[row.id] = _serve(plan, row)
        assert served[row.id] == pytest.approx(before, abs=1e-9), "recorded first or derived first: the same"
    trained = _by_id(training_vectors(online_from.date(), LAST, ALL_FEATURES))
    assert trained.keys() == served.keys() and len(served) > 20
    for transaction_id, values in trained.items():
        assert dict(zip(ALL_FEATURES, served[transaction_id], strict=True)) == pytest.approx(
            dict(zip(ALL_FEATURES, values, strict=True)), abs=1e-6
        )
    assert all(len(set(column)) > 1 for column in zip(*served.values(), strict=True)), "no feature was constant"


def test_a_build_at_midnight_or_just_before_it_is_that_days() -> None:
    """Both hold the whole of the day before, and nothing of the new one."""
    payments = some_payments(200, days=30)
    record(payments)
    plan = VectorPlan(ALL_FEATURES)
    trained = _by_id(training_vectors(FIRST, LAST, ALL_FEATURES))
    row = payments[190]
    midnight = row.occurred_at.replace(hour=0, minute=0, second=0, microsecond=0)
    build(["customer_activity", "merchant_risk"], as_of=row.occurred_at, now=row.occurred_at)
    for as_of in (midnight - _TICK, midnight, midnight + _TICK):
        build(set(plan.groups) - {"customer_activity", "merchant_risk"}, as_of=as_of, now=as_of)
        assert _serve(plan, row) == pytest.approx(trained[row.id], abs=1e-6)


def test_the_vectors_of_some_transactions_are_those_of_training() -> None:
    """Of several days, in ledger order; ids that the ledger does not have are left out."""
    payments = some_payments(200, days=20)
    record(payments)
    trained = _by_id(training_vectors(FIRST, LAST, ALL_FEATURES))
    wanted = [payments[place].id for place in (3, 77, 78, 150, 199)]
    found = vectors_of([*reversed(wanted), "nobody"], ALL_FEATURES, until=payments[-1].occurred_at)
    assert found.transaction_ids.tolist() == wanted
    assert _by_id(found) == {transaction_id: trained[transaction_id] for transaction_id in wanted}
    with pytest.raises(ValueError, match="no_such"):
        vectors_of(wanted, ["no_such"], until=payments[-1].occurred_at)


def test_a_built_past_serves_the_next_transactions_as_training_saw_them() -> None:
    """A build of a moment with later transactions in the ledger: none of them is seen."""
    payments = some_payments(300, days=50, seed=2)
    record(payments)
    plan = VectorPlan(BASELINE_FEATURES)
    trained = _by_id(training_vectors(FIRST, LAST, BASELINE_FEATURES))
    for place in (150, 222, 290):
        row = payments[place]
        assert row.occurred_at > payments[place - 1].occurred_at
        build(BUILT_GROUPS, as_of=row.occurred_at - _TICK, now=row.occurred_at)
        build(["merchant_risk"], as_of=row.occurred_at, now=row.occurred_at)
        assert _serve(plan, row, is_recorded=False) == pytest.approx(trained[row.id], abs=1e-6)


def test_no_vector_depends_on_what_came_later() -> None:
    """All features of a day are the same whether the ledger ends with it or goes on."""
    payments = some_payments(300, days=50)
    day = START.date() + timedelta(days=40)
    record([row for row in payments if row.occurred_at.date() <= day])
    alone = training_vectors(FIRST, day, ALL_FEATURES)
    record([row for row in payments if row.occurred_at.date() > day])
    among = training_vectors(FIRST, day, ALL_FEATURES)
    assert alone.transaction_ids.tolist() == among.transaction_ids.tolist()
    assert np.array_equal(alone.X, among.X)


def test_a_label_enters_the_vectors_a_week_later() -> None:
    """Changing a label changes nothing for the transactions of the next seven days, and something after."""
    record([payment(str(n), START + timedelta(days=n, hours=1)) for n in range(12)])
    before = training_vectors(FIRST, LAST, ALL_FEATURES).X
    Transaction.objects.filter(id="2").update(is_fraud=True)
    after = training_vectors(FIRST, LAST, ALL_FEATURES).X
    changed = (after != before).any(axis=1)
    assert changed.tolist() == [False] * 9 + [True] * 3


def test_profiles_are_those_of_the_midnight_before() -> None:
    """A customer's first day is unknown to the whole of that day."""
    record(
        [payment("1", START + timedelta(hours=1), amount="10"), payment("2", START + timedelta(hours=2), amount="30")]
    )
    record([payment("3", START + timedelta(days=1, hours=1), amount="40")])
    names = ["customer_age_days", "amount_to_usual", "amount_deviations", "merchant_age_days", "amount_to_ticket"]
    assert training_vectors(FIRST, LAST, names).X.tolist() == [
        [0, 1, 0, 0, 1],
        [0, 1, 0, 0, 1],
        [1, 2, 2, 1, 2],
    ]


def test_the_set_names_customers_labels_and_moments() -> None:
    """Equal seconds by id, shorter first; both days are included; unknown labels are -1."""
    last = START + timedelta(days=2) - _TICK
    record(
        [
            payment("10", last, customer="c2", is_fraud=True),
            payment("9", last, is_fraud=None),
            payment("1", START, is_fraud=False),
            payment("0", START - _TICK),
            payment("2", last + _TICK),
        ]
    )
    vectors = training_vectors(FIRST, FIRST + timedelta(days=1), ["merchant_count_1d", "amount"])
    assert vectors.transaction_ids.tolist() == ["1", "9", "10"]
    assert vectors.customer_ids.tolist() == ["c1", "c1", "c2"]
    assert vectors.labels.tolist() == [0, -1, 1]
    assert vectors.occurred_at[0] == np.datetime64("2026-03-02T00:00:00.000000")
    assert vectors.X.tolist() == [[0, 10], [0, 10], [0, 10]]


def test_a_span_without_transactions_is_an_empty_set() -> None:
    """Of the right width, for an empty ledger too."""
    assert training_vectors(FIRST, LAST, ALL_FEATURES).X.shape == (0, len(ALL_FEATURES))
    record([payment("1", START)])
    assert training_vectors(FIRST + timedelta(days=1), LAST, ALL_FEATURES).X.shape == (0, len(ALL_FEATURES))
    assert len(training_vectors(FIRST - timedelta(days=2), FIRST - timedelta(days=1), BASELINE_FEATURES)) == 0


def test_wrong_names_and_spans_are_refused() -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match="no model features: nonsense"):
        training_vectors(FIRST, LAST, ["nonsense"])
    with pytest.raises(ValueError, match="before it starts"):
        training_vectors(LAST, FIRST, ["amount"])


def test_the_export_holds_every_row_and_replaces_the_file_whole(tmp_path: Path) -> None:
    """Ids as text, features by name, the label with null for unknown."""
    file = tmp_path / "vectors.parquet"
    file.write_text("something older")
    record(some_payments(50, days=10))
    out = StringIO()
    call_command(
        "export_vectors", "--from", "2026-03-03", "--to", "2026-03-05", "--out", str(file), "--json", stdout=out
    )
    table = pq.read_table(file)
    vectors = training_vectors(date(2026, 3, 3), date(2026, 3, 5), ALL_FEATURES)
    assert table.column_names == ["transaction_id", *ALL_FEATURES, "is_fraud"]
    assert table["transaction_id"].to_pylist() == vectors.transaction_ids.tolist()
    assert np.array_equal(np.column_stack([table[name].to_numpy() for name in ALL_FEATURES]), vectors.X)
    known = dict(Transaction.objects.values_list("id", "is_fraud"))
    assert table["is_fraud"].to_pylist() == [known[name] for name in table["transaction_id"].to_pylist()]
    assert json.loads(out.getvalue())["rows"] == table.num_rows > 0
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--from", "2026-03-05", "--to", "2026-03-03", "--out", "x.parquet"], "--to"),
        (["--from", "2026-03-03", "--to", "2026-03-03", "--out", "no/such/folder/x.parquet"], "--out"),
        (["--from", "2026-03-03", "--to", "2026-03-03", "--out", "."], "--out"),
        (["--from", "3 March", "--to", "2026-03-03", "--out", "x.parquet"], "--from"),
    ],
)
def test_the_export_refuses_what_it_cannot_do(arguments: list[str], names: str) -> None:
    """The option is named; nothing is written."""
    with pytest.raises(CommandError, match=names):
        call_command("export_vectors", *arguments)


def test_amounts_are_exact_to_the_ledgers_four_decimals() -> None:
    """Sums of integers: no rounding gathers over a ledger of large and small amounts."""
    amounts = ["999999999.9999", "0.0001", "0.0001"]
    record([payment(str(n), START + timedelta(days=n), amount=amount) for n, amount in enumerate(amounts)])
    vectors = training_vectors(FIRST, LAST, ["amount", "customer_mean_amount_7d", "customer_mean_amount_1d"])
    assert vectors.X[:, 0].tolist() == [float(amount) for amount in amounts]
    assert vectors.X[2, 1] == pytest.approx(float(sum(map(Decimal, amounts)) / 3), rel=1e-15)
    assert vectors.X[2, 2] == 0.0001
