"""Serving agrees with training: decisions of the journal against the vectors that training has."""

import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from features import tasks
from features.definitions import ALL_FEATURES, BUILT_GROUPS
from features.models import FeatureRow, Transaction
from features.refresh import build
from mlserve.observability import metrics
from mlserve.platform.diagnosis import Level
from predictions.diagnosis import diagnose_skew
from predictions.models import Decision, SkewCheck
from predictions.skew import KEPT, SkewReport, check_skew
from predictions.tasks import check_training_serving_skew
from tests.fixtures.population import World

PROFILES = {"merchant_age_days", "amount_to_ticket"}


class Served:
    """The world with features of now; compares what it has scored since."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.started = datetime.now(UTC)
        self.written: set[str] = set()
        self.merchant = "M3"

    def score(self, **changes: Any) -> str:
        answer = self.world.score(**({"merchant_id": self.merchant} | changes))
        assert answer.status == 200, answer.body
        transaction_id: str = answer.body["transaction_id"]
        return transaction_id

    def check(self) -> SkewReport:
        now = datetime.now(UTC)
        return check_skew(now=now, span=now - self.started)

    def write(self, group: str, entity_id: str, values: str) -> None:
        """A row is changed by hand; no copy in the cache hides it."""
        with connection.cursor() as cursor:
            cursor.execute(
                f'UPDATE features_featurerow SET "values" = {values} WHERE "group" = %s AND entity_id = %s',
                (group, entity_id),
            )
        self.written.add(group)
        kind = "customer" if group.startswith("customer") else "merchant"
        call_command("invalidate", kind, entity_id, stdout=StringIO())

    def plant(self, group: str = "merchant_profile", **changes: Any) -> None:
        """Of the served merchant's profile."""
        self.write(group, self.merchant, "ARRAY[0.0, 7.0]")
        if changes:
            FeatureRow.objects.filter(group=group, entity_id=self.merchant).update(**changes)
        call_command("invalidate", "merchant", self.merchant, stdout=StringIO())


@pytest.fixture
def served(world: World) -> Iterator[Served]:
    now = datetime.now(UTC)
    # Others have built it, long ago perhaps; profiles and embeddings are of today, unless midnight has passed.
    build(["merchant_risk"] if world.built_at.date() == now.date() else BUILT_GROUPS, as_of=now, now=now)
    served = Served(world)
    yield served
    if served.written:
        now = datetime.now(UTC)
        build(served.written, as_of=now, now=now)
    SkewCheck.objects.all().delete()


def _total(counter: Any, *labels: str) -> float:
    return float(counter.labels(*labels)._value.get())


def test_what_was_served_is_what_training_has(served: Served) -> None:
    """Hundreds of scores, known customers and new ones on their first day, with the scheduled builds in between."""
    newcomers = [served.world.newcomer() for _ in range(5)]
    new_merchant = served.world.newcomer("merchant")
    for n in range(210):
        if n in (70, 140):
            for task in (tasks.rebuild_merchant_risk, tasks.rebuild_profiles, tasks.build_embeddings):
                task()
            served.world.forget_l1()
        customer = newcomers[n % 5] if n % 3 == 0 else f"C{n % 60}"
        merchant = new_merchant if n % 7 == 0 else f"M{n % 25}"
        served.score(customer_id=customer, merchant_id=merchant, amount=10.0 + n / 4)
    report = served.check()
    assert report.differing == 0, report.examples
    assert (report.sampled, report.skipped, report.compared) == (210, {}, 210 * len(ALL_FEATURES))
    assert {of.compared for of in report.features.values()} == {210}
    # The clock may pass a cutoff while the test runs.
    assert set(report.explained) <= {"older_build", "late_arrival"}  # and the tests before it record in the past


def test_a_value_that_somebody_changed_is_found(served: Served) -> None:
    """With its feature, the value that it should have had, in metrics, doctor and log; the command exits with 1."""
    before = _total(metrics.SKEW_VALUES, "amount_to_ticket", "differing")
    served.score(amount=35.0)
    assert served.check().differing == 0
    (healthy,) = diagnose_skew()
    assert healthy.level is Level.OK and "those of training" in healthy.detail
    served.plant()
    wrong = served.score(amount=35.0)
    report = served.check()
    assert report.differing == 2 and report.explained == {}
    assert {name for name, of in report.features.items() if of.differing} == PROFILES
    by_feature = {one.feature: one for one in report.examples}
    assert {one.transaction_id for one in report.examples} == {wrong}
    assert by_feature["amount_to_ticket"].served == 5.0 and by_feature["amount_to_ticket"].expected < 2.0
    assert _total(metrics.SKEW_VALUES, "amount_to_ticket", "differing") == before + 1
    (finding,) = diagnose_skew()
    assert finding.level is Level.FAIL and "amount_to_ticket" in finding.detail
    Decision.objects.exclude(pk=wrong).delete()  # other tests have decisions that differ, and few examples are shown
    out = StringIO()
    with pytest.raises(CommandError, match="amount_to_ticket") as refusal, redirect_stderr(StringIO()):
        call_command("training_serving_skew", "--hours", "1", "--json", "--sample", "100000", stdout=out)
    assert refusal.value.returncode == 1
    shown = json.loads(out.getvalue())
    assert shown["differing"] == 2 and shown["features"]["amount_to_ticket"]["differing"] == 1
    shown_by_lines = StringIO()
    with pytest.raises(CommandError), redirect_stderr(StringIO()):
        call_command("training_serving_skew", "--hours", "1", "--sample", "100000", stdout=shown_by_lines)
    assert f"{wrong}: amount_to_ticket was 5 (l" in shown_by_lines.getvalue()


@pytest.mark.parametrize(
    ("group", "values", "feature"),
    [
        ("customer_profile", "ARRAY[0.0, 1.0, 1.0]", "amount_to_usual"),
        ("customer_activity", "ARRAY[0.0]", "customer_count_7d"),
        ("merchant_risk", "ARRAY[3.0, 0, 3, 0, 3, 0]", "merchant_count_30d"),
        ("merchant_embedding", """array_fill(1.0::float8, ARRAY[16]) || "values"[17]""", "affinity"),
    ],
)
def test_every_group_is_looked_at(served: Served, group: str, values: str, feature: str) -> None:
    """Whatever a row says that the ledger does not."""
    served.write(group, "C5" if group.startswith("customer") else served.merchant, values)
    served.score(customer_id="C5")
    assert served.check().features[feature].differing == 1


def test_what_was_flagged_has_a_reason(served: Served) -> None:
    """A stale value, and a default for what nobody knew."""
    served.world.edit_policy("merchant_profile", fresh_for_s=0.001)
    served.plant()
    served.score()
    stale = served.check()
    assert (stale.differing, stale.explained) == (0, {"stale": 2})
    FeatureRow.objects.filter(group="merchant_profile", entity_id=served.merchant).update(deleted_at=timezone.now())
    call_command("invalidate", "merchant", served.merchant, stdout=StringIO())
    served.score()
    report = served.check()
    assert (report.differing, report.explained) == (0, {"stale": 2, "default": 2})


def test_another_build_than_the_moments_has_a_reason(served: Served) -> None:
    """A row of the day before, as between midnight and the build; and a request that comes after midnight."""
    served.world.edit_policy("merchant_profile", fresh_for_s=10 * 86_400)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    served.plant(as_of=midnight - timedelta(seconds=1))
    served.score()
    older = served.check()
    assert (older.differing, older.explained) == (0, {"older_build": 2})
    served.plant(as_of=midnight)
    served.score(occurred_at=(midnight - timedelta(seconds=1)).isoformat())
    newer = served.check()
    assert newer.differing == 0
    assert newer.features["amount_to_ticket"].explained == {"older_build": 1, "newer_build": 1}


def test_what_arrived_after_a_score_is_a_reason(served: Served) -> None:
    """For the windows of its customer, the profile of its merchant, and all embeddings; and for nothing else."""
    now = datetime.now(UTC)
    served.score(customer_id="C7", merchant_id="M3")
    yesterday = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(hours=1)
    late = [("C7", "M9", now - timedelta(minutes=1)), ("C8", "M3", yesterday), ("C9", "M3", yesterday)]
    Transaction.objects.bulk_create(
        Transaction(
            id=f"late-{served.world.newcomer()}",
            occurred_at=at,
            customer_id=customer,
            merchant_id=merchant,
            amount=Decimal(5000),
            is_fraud=False,
        )
        for customer, merchant, at in late
    )
    report = served.check()
    assert report.differing == 0
    assert set(report.explained) == {"late_arrival"}
    late_features = {name for name, of in report.features.items() if of.explained}
    assert {"customer_count_1d", "customer_mean_amount_30d", "amount_to_ticket"} <= late_features
    assert not late_features & {"amount", "merchant_risk_7d", "customer_age_days"}


def test_transactions_of_the_same_moment_are_a_reason(served: Served) -> None:
    """Training orders them by id; the one that was scored second had the smaller id."""
    moment, name = datetime.now(UTC).isoformat(), served.world.newcomer()
    for transaction_id in (f"{name}-b", f"{name}-a"):
        served.score(customer_id="C12", occurred_at=moment, transaction_id=transaction_id)
    counted = served.check().features["customer_count_1d"]
    assert (counted.differing, counted.explained) == (0, {"late_arrival": 1, "same_moment": 1})


def test_a_late_arrival_is_no_reason_for_another_value_than_without_it(served: Served) -> None:
    """The customer has paid a moment ago, so something may have been missing; but not all of the windows."""
    for _ in range(3):
        served.score(customer_id="C13")
    served.write("customer_activity", "C13", "ARRAY[0.0]")
    served.score(customer_id="C13")
    assert served.check().features["customer_count_30d"].differing == 1


def test_decisions_that_cannot_be_compared_are_counted(served: Served) -> None:
    """Late requests, transactions that the ledger has lost, answers that nobody can read."""
    served.score(occurred_at=(datetime.now(UTC) - timedelta(days=2)).isoformat())
    Transaction.objects.filter(id=served.score()).delete()
    Decision.objects.filter(pk=served.score()).update(response=b"nonsense")
    served.score()
    before = _total(metrics.SKEW_DECISIONS, "not_in_ledger")
    report = served.check()
    assert report.skipped == {"late_request": 1, "not_in_ledger": 1, "unreadable": 1}
    assert (report.sampled, report.compared, report.differing) == (4, len(ALL_FEATURES), 0)
    assert _total(metrics.SKEW_DECISIONS, "not_in_ledger") == before + 1
    Decision.objects.filter(response=b"nonsense").delete()


def test_the_scheduled_check_keeps_its_result_for_a_while(served: Served) -> None:
    """The doctor misses one that is days old, and results older than three months are gone."""
    for age in (KEPT + timedelta(hours=1), timedelta(days=3)):
        SkewCheck.objects.create(at=timezone.now() - age, sampled=1, compared=1, differing=0, report={"features": {}})
    (finding,) = diagnose_skew()
    assert finding.level is Level.WARN and "beat" in finding.fix
    served.score()
    check_training_serving_skew()
    assert SkewCheck.objects.count() == 2
    assert SkewCheck.objects.latest("at").compared >= len(ALL_FEATURES)


def test_without_decisions_there_is_nothing_to_compare(served: Served) -> None:
    """And no error."""
    report = served.check()
    assert (report.sampled, report.compared, report.differing, report.features) == (0, 0, 0, {})
