import json
import os
import re
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from threading import Thread

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from features import refresh, tasks
from features.activity import lock_customers, update_activity
from features.definitions import BUILT_GROUPS, EMBEDDING_SIZE, GROUPS
from features.embeddings import embed, with_build
from features.models import FeatureRow, Transaction
from features.refresh import build
from mlserve.postgres.one_at_a_time import one_at_a_time
from tests.features.ledgers import START, payment, record, some_payments
from tests.features.sessions import somebody_waits
from tests.fixtures.waiting import until

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def _stored(group: str) -> Mapping[str, list[float]]:
    return dict(FeatureRow.objects.filter(group=group, deleted_at=None).values_list("entity_id", "values"))


@pytest.mark.django_db
def test_every_group_gets_one_row_per_entity_of_its_type() -> None:
    """With the number of values that the definition declares and the moment of the build."""
    record(some_payments(60, days=50))
    report = build(BUILT_GROUPS, as_of=NOW, now=NOW)
    entities = {
        "customer": set(Transaction.objects.values_list("customer_id", flat=True)),
        "merchant": set(Transaction.objects.values_list("merchant_id", flat=True)),
    }
    for name in BUILT_GROUPS:
        group, rows = GROUPS[name], _stored(name)
        assert rows.keys() == entities[group.entity]
        assert report.rows[name] == len(rows)
        assert {len(values) for values in rows.values()} == {len(group.values)} or name == "customer_activity"
    assert set(FeatureRow.objects.values_list("as_of", flat=True)) == {NOW}


@pytest.mark.django_db
@pytest.mark.parametrize("built_after", [timedelta(0), timedelta(hours=13, minutes=7), timedelta(hours=23)])
def test_profiles_describe_the_history_up_to_midnight_whenever_they_are_built(built_after: timedelta) -> None:
    """First moment, mean and population deviation of the days before; midnight itself belongs to the new day."""
    midnight = START + timedelta(days=2)
    amounts = ["10.01", "20.02", "40.04"]
    moments = [START, START + timedelta(days=1), midnight - timedelta(microseconds=1)]
    record([payment(str(n), at, amount=amount) for n, (at, amount) in enumerate(zip(moments, amounts, strict=True))])
    record([payment("9", midnight, amount="1000"), payment("10", midnight, customer="c2", merchant="m2")])
    build(["customer_profile", "merchant_profile"], as_of=midnight + built_after, now=NOW)
    seen = [float(amount) for amount in amounts]
    expected = [START.timestamp(), statistics.fmean(seen), statistics.pstdev(seen)]
    assert _stored("customer_profile").keys() == {"c1"} and _stored("merchant_profile").keys() == {"m1"}
    assert _stored("customer_profile")["c1"] == pytest.approx(expected, rel=1e-12)
    assert _stored("merchant_profile")["m1"] == pytest.approx(expected[:2], rel=1e-12)


@pytest.mark.django_db
def test_a_second_build_of_a_day_changes_nothing_but_for_what_arrived_late() -> None:
    """A transaction of the same day is left to tomorrow's build; one of the day before is taken in."""
    groups = ["customer_profile", "customer_embedding", "merchant_profile", "merchant_embedding"]
    record(some_payments(60, days=3))
    noon = START + timedelta(days=3, hours=12)
    assert any(build(groups, as_of=noon - timedelta(hours=6), now=noon).invalidated.values())
    record([payment("900", noon, customer="c0", merchant="m0", amount="999")])
    assert not any(build(groups, as_of=noon + timedelta(hours=1), now=noon).invalidated.values())
    record([payment("901", noon - timedelta(days=1), customer="c0", merchant="m0", amount="999")])
    changed = build(groups, as_of=noon + timedelta(hours=2), now=noon).invalidated
    assert changed["customer_profile"] == changed["merchant_profile"] == 1 and changed["customer_embedding"] > 0


@pytest.mark.django_db
def test_merchant_risk_looks_seven_days_back_from_the_cut() -> None:
    """A fraud counts from exactly seven days after it on; labels that nobody gave count as none."""
    record([payment("1", START, is_fraud=True), payment("2", START - timedelta(hours=1), is_fraud=None)])
    week = START + timedelta(days=7)
    build(["merchant_risk"], as_of=week - timedelta(microseconds=1), now=NOW)
    assert _stored("merchant_risk")["m1"] == [1, 0, 1, 0, 1, 0]
    build(["merchant_risk"], as_of=week, now=NOW)
    assert _stored("merchant_risk")["m1"] == [2, 0.5, 2, 0.5, 2, 0.5]
    build(["merchant_risk"], as_of=week + timedelta(minutes=29), now=NOW)
    assert _stored("merchant_risk")["m1"] == [2, 0.5, 2, 0.5, 2, 0.5]
    build(["merchant_risk"], as_of=week + timedelta(days=8), now=NOW)
    assert _stored("merchant_risk")["m1"] == [0, 0, 0, 0, 2, 0.5]


@pytest.mark.django_db
def test_merchant_risk_is_that_of_the_last_half_hour() -> None:
    """Two builds between the same cutoffs are one, for whatever the windows lose or gain meanwhile."""
    record([payment("1", START + timedelta(minutes=10), is_fraud=True)])
    week = START + timedelta(days=7)
    for minutes, expected in ((29, 0), (30, 1), (59, 1)):
        build(["merchant_risk"], as_of=week + timedelta(minutes=minutes), now=NOW)
        assert _stored("merchant_risk")["m1"][0] == expected


@pytest.mark.django_db
def test_a_build_twice_is_a_build_once_but_for_version_and_moment() -> None:
    """Entities without transactions keep their rows; deleted ones that the ledger knows come back."""
    record(some_payments(40, days=20))
    FeatureRow.objects.create(group="merchant_risk", entity_id="closed", values=[1.0] * 6, as_of=START)
    build(BUILT_GROUPS, as_of=NOW, now=NOW)
    before = {(row.group, row.entity_id): row for row in FeatureRow.objects.all()}
    FeatureRow.objects.filter(group="merchant_profile").update(deleted_at=NOW)
    later = NOW + timedelta(hours=1)
    build(BUILT_GROUPS, as_of=NOW, now=later)
    after = {(row.group, row.entity_id): row for row in FeatureRow.objects.all()}
    closed = before.pop(("merchant_risk", "closed"))
    assert after.pop(("merchant_risk", "closed")).version == closed.version
    assert after.keys() == before.keys()
    for key, row in after.items():
        assert (row.values, row.as_of, row.deleted_at) == (before[key].values, later, None)
        assert row.version > before[key].version


@pytest.mark.django_db
def test_an_empty_ledger_builds_nothing() -> None:
    """And is no error."""
    assert set(build(BUILT_GROUPS, as_of=NOW, now=NOW).rows.values()) == {0}


@pytest.mark.django_db
def test_a_build_of_the_present_leaves_no_recorded_transaction_out() -> None:
    """Not even one whose clock runs ahead; a build of the past does."""
    record([payment("1", NOW - timedelta(days=1)), payment("2", NOW + timedelta(seconds=5))])
    build(["customer_activity"], as_of=NOW, now=NOW)
    assert len(_stored("customer_activity")["c1"]) == 1 + 2 * 3
    build(["customer_activity"], as_of=NOW - timedelta(seconds=1), now=NOW)
    assert len(_stored("customer_activity")["c1"]) == 1 + 1 * 3


@pytest.mark.django_db(transaction=True)
def test_a_transaction_recorded_while_activity_is_built_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build waits for the session that records, and reads the ledger after it."""
    record(some_payments(30, days=5, customers=3))
    monkeypatch.setattr(refresh, "ACTIVITY_CHUNK", 2)

    def build_activity() -> None:
        try:
            build(["customer_activity"], as_of=NOW, now=NOW)
        finally:
            connection.close()

    building = Thread(target=build_activity)
    with transaction.atomic(), connection.cursor() as cursor:
        lock_customers(cursor, ["c0"])
        building.start()
        until(somebody_waits)
        record([payment("999", NOW, customer="c0")])
        update_activity(cursor, ["c0"], NOW)
    building.join(60)
    assert _stored("customer_activity")["c0"][-3] == NOW.timestamp()


@pytest.mark.django_db(transaction=True)
def test_a_build_that_waited_for_another_reads_the_ledger_after_it() -> None:
    """So an older view of the ledger never overwrites a newer one."""

    def build_profiles() -> None:
        try:
            build(["merchant_profile"], as_of=NOW, now=NOW)
        finally:
            connection.close()

    waiting = Thread(target=build_profiles)
    with transaction.atomic():
        refresh._lock_builds(["merchant_profile", "merchant_risk"])
        waiting.start()
        until(somebody_waits)
        record([payment("1", START)])
    waiting.join(60)
    assert _stored("merchant_profile") == {"m1": [START.timestamp(), 10.0]}


def test_embeddings_place_customers_near_the_merchants_that_they_pay() -> None:
    """Deterministic; ids without payments and components that a small matrix lacks are zero."""
    customer = np.array([0, 0, 0, 1, 1, 1, 3, 3])
    merchant = np.array([0, 0, 1, 0, 1, 1, 2, 2])
    left, right = embed(4, 4, customer, merchant)
    assert left.shape == right.shape == (4, EMBEDDING_SIZE)
    assert not left[2].any() and not right[3].any() and not left[:, 3:].any()
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    nearness = np.divide(left @ right.T, norms, out=np.zeros((4, 4)), where=norms > 0)
    assert nearness[0, 0] > 0.5 > nearness[0, 2] and nearness[3, 2] > 0.99
    again = embed(4, 4, customer, merchant)
    assert np.array_equal(left, again[0]) and np.array_equal(right, again[1])
    assert np.allclose(
        left @ right.T, [[np.log(3), np.log(2), 0, 0], [np.log(2), np.log(3), 0, 0], [0] * 4, [0, 0, np.log(3), 0]]
    )


def test_the_number_of_a_build_names_its_axes() -> None:
    """The same result has the same number, another one another; exact in a float64, and on both sides."""
    customer, merchant = np.array([0, 0, 1]), np.array([0, 1, 1])
    left, right = with_build(*embed(2, 2, customer, merchant))
    assert left.shape == right.shape == (2, EMBEDDING_SIZE + 1)
    numbers = {*left[:, -1], *right[:, -1]}
    assert len(numbers) == 1 and all(number == int(number) < 2**53 for number in numbers)
    assert with_build(*embed(2, 2, customer, merchant))[0][0, -1] in numbers
    assert with_build(*embed(2, 2, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])))[0][0, -1] not in numbers


@pytest.mark.django_db(transaction=True)
def test_a_build_stores_its_number_with_both_sides() -> None:
    """Also if one side alone is asked for, of a ledger that has grown: the other is built with it."""
    record(some_payments(30, days=3))
    build(["customer_embedding", "merchant_embedding"], as_of=NOW, now=NOW)
    stored = [values for group in ("customer_embedding", "merchant_embedding") for values in _stored(group).values()]
    assert len({values[-1] for values in stored}) == 1
    record([payment("one more", START + timedelta(days=1))])
    report = build(["merchant_embedding"], as_of=NOW, now=NOW)
    assert report.rows.keys() == {"customer_embedding", "merchant_embedding"}
    (number,) = {values[-1] for group in report.rows for values in _stored(group).values()}
    assert number != stored[0][-1]


def test_embeddings_of_nothing_are_zeros() -> None:
    """A ledger without rows, and one of a single pair."""
    nobody = np.array([], dtype=np.int64)
    assert not any(side.any() for side in embed(2, 3, nobody, nobody))
    left, right = embed(1, 1, np.array([0]), np.array([0]))
    assert left[0, 0] * right[0, 0] == pytest.approx(np.log(2))


@pytest.mark.django_db
def test_the_command_builds_what_it_is_told_and_says_so_in_json() -> None:
    """These groups, as of now."""
    record(some_payments(20, days=3))
    out = StringIO()
    call_command("build_features", "--groups", "merchant_risk,merchant_profile", "--json", stdout=out)
    answer = json.loads(out.getvalue())
    merchants = Transaction.objects.values("merchant_id").distinct().count()
    assert abs(datetime.now(UTC) - datetime.fromisoformat(answer["as_of"])) < timedelta(minutes=1)
    assert answer["rows"] == {"merchant_profile": merchants, "merchant_risk": merchants}


@pytest.mark.django_db
@pytest.mark.parametrize("moment", ["2026-03-04", "2026-03-04T12:00:00+02:00", "2026-11-28T00:00:00Z", ""])
def test_a_past_moment_never_becomes_what_serves(moment: str) -> None:
    """Usage: exit code 2, the way to what was known then is named, and no row is touched."""
    record(some_payments(20, days=3))
    build(BUILT_GROUPS, as_of=NOW, now=NOW)
    rows = list(FeatureRow.objects.order_by("group", "entity_id").values())
    with pytest.raises(CommandError, match="export_vectors") as refusal:
        call_command("build_features", "--as-of", moment)
    assert refusal.value.returncode == 2
    assert list(FeatureRow.objects.order_by("group", "entity_id").values()) == rows


@pytest.mark.django_db
def test_of_two_builds_at_once_the_second_hears_who_builds() -> None:
    """Since when, on which host, as which process; a task leaves it out and says so."""
    record(some_payments(20, days=3))
    with one_at_a_time("build"):
        with pytest.raises(CommandError) as refusal:
            call_command("build_features", "--groups", "merchant_profile")
        assert refusal.value.returncode == 1
        assert re.search(rf"since 20\d\d-.* UTC, by process {os.getpid()} on ", str(refusal.value))
        assert not FeatureRow.objects.exists()
    call_command("build_features", "--groups", "merchant_profile")
    assert FeatureRow.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "arguments",
    [
        ["--as-of", "yesterday"],
        ["--as-of", "9999-01-01"],
        ["--groups", "merchant_risk,nonsense"],
        ["--groups", "merchant_traffic"],
    ],
)
def test_the_command_refuses_what_it_does_not_understand(arguments: list[str]) -> None:
    """Usage: exit code 2, the option is named."""
    with pytest.raises(CommandError, match=arguments[0]) as refusal:
        call_command("build_features", *arguments)
    assert refusal.value.returncode == 2


@pytest.mark.django_db
def test_the_scheduled_builds_write_their_groups() -> None:
    """Run twice they leave one row per entity."""
    record([payment("1", START)])
    for task in (tasks.rebuild_merchant_risk, tasks.rebuild_profiles, tasks.build_embeddings) * 2:
        task()
    written = set(FeatureRow.objects.values_list("group", "entity_id"))
    assert written == {
        (name, "c1" if GROUPS[name].entity == "customer" else "m1")
        for name in BUILT_GROUPS
        if name != "customer_activity"
    }
