"""Whatever writes the ledger leaves features true, or flagged until they are."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.management import call_command
from django.db import connection, transaction

from features import ingest, outdated, policies
from features.catch_up import catch_up, overdue_embeddings
from features.definitions import BUILT_GROUPS, EMBEDDINGS, GROUPS, GROUPS_OF_ENTITY
from features.diagnosis import diagnose_ledger
from features.ingest import NewTransaction
from features.labels import NewLabel, report_labels
from features.models import FeatureRow, OutdatedFeature, Transaction
from features.outdated import EMBEDDINGS_EVERY
from features.policies import policies_in_force
from features.refresh import build, build_locks
from features.vectors import read_groups
from mlserve.cache import wiring
from mlserve.cache.budget import Budget
from mlserve.cache.clock import SystemClock
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Degradation, Outcome
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from mlserve.platform.diagnosis import Level
from tests.features.ledgers import payment, record
from tests.features.sessions import second_session

DAY = timedelta(days=1)
FLAGS = {Degradation.STALE, Degradation.STALE_LEDGER_AHEAD}
CUSTOMER_GROUPS = [group.name for group in GROUPS_OF_ENTITY["customer"]]


@pytest.fixture
def now(redis_client: redis.Redis, transactional_db: None) -> Iterator[datetime]:
    """A ledger of three customers and three merchants with a payment a day for 40 days, and all features built."""
    policies.forget()
    wiring.reset()
    moment = datetime.now(UTC)
    record(
        payment(f"{day}-{who}", moment - day * DAY, customer=f"c{who}", merchant=f"m{who}", amount=f"{who + day}.00")
        for day in range(40, 0, -1)
        for who in range(3)
    )
    build(BUILT_GROUPS, as_of=moment, now=moment)
    assert not OutdatedFeature.objects.exists()
    yield moment
    policies.forget()
    wiring.reset()


def _behind() -> set[tuple[str, str]]:
    return set(OutdatedFeature.objects.values_list("group", "entity_id"))


def _read(*keys: tuple[str, str], max_age_s: float | None = None) -> dict[tuple[str, str], Outcome]:
    wanted = {key: Key(GROUPS[key[0]].entity, key[1], key[0]) for key in keys}
    reading = read_groups(
        wanted,
        book=policies_in_force(),
        request=RequestTier(),
        budget=Budget(SystemClock(), 2.0),
        max_age_s=max_age_s,
    )
    return {key: reading.outcomes[wanted[key]] for key in keys}


def _stored() -> Mapping[tuple[str, str], list[float]]:
    rows = FeatureRow.objects.filter(deleted_at=None).exclude(group__in=EMBEDDINGS)
    return {(group, entity_id): values for group, entity_id, values in rows.values_list("group", "entity_id", "values")}


def _by_hand(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


_INSERT = """
INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount)
SELECT 'by-hand-' || n, %s::timestamptz - n * interval '1 second', 'c1', 'm1', 5 FROM generate_series(1, 40) AS n
"""


def test_an_insert_by_hand_is_flagged_until_the_worker_has_followed(now: datetime) -> None:
    """From the next read of the source on, with an age that goes back to the change; then true, and never flagged."""
    key = ("customer_activity", "c1")
    _read(key)
    _by_hand(_INSERT, now - 3 * DAY)
    flagged = _read(key, max_age_s=0)[key]
    assert flagged.stale and set(flagged.degradations) == FLAGS
    assert 0 <= flagged.age_s < 60
    assert len(flagged.values or ()) == 1 + 3 * 32
    report = catch_up(now=now)
    assert report.rows["customer_activity"] == 1
    caught_up = _read(key, max_age_s=0)[key]
    assert not caught_up.stale and not caught_up.degradations
    assert len(caught_up.values or ()) == 1 + 3 * 72
    assert caught_up.version > flagged.version


def test_what_is_flagged_is_kept_by_no_tier(now: datetime) -> None:
    """So a copy never outlives its flag, and reads after the worker's visit find the truth at once."""
    policies.forget()
    keys = [("customer_activity", "c1"), ("customer_profile", "c1"), ("merchant_profile", "m1")]
    _by_hand(_INSERT, now - 3 * DAY)
    assert all(outcome.stale for outcome in _read(*keys).values())
    engine().filler.flush()
    assert all(outcome.tier == "l3" and outcome.stale for outcome in _read(*keys).values())
    catch_up(now=now)
    assert not any(outcome.stale for outcome in _read(*keys).values())
    engine().filler.flush()
    assert {outcome.tier for outcome in _read(*keys).values()} <= {"l1", "l2"}


@pytest.mark.parametrize(
    "change",
    [
        lambda now: _by_hand(_INSERT, now - 3 * DAY),
        lambda now: _by_hand(_INSERT, now - 20 * DAY),
        lambda now: _by_hand("UPDATE features_transaction SET amount = amount + 1 WHERE id = '5-1'"),
        lambda now: _by_hand("UPDATE features_transaction SET customer_id = 'c2', merchant_id = 'm0' WHERE id = '9-1'"),
        lambda now: _by_hand("UPDATE features_transaction SET id = 'other' WHERE id = '9-1'"),
        lambda now: _by_hand("UPDATE features_transaction SET is_fraud = true WHERE merchant_id = 'm1'"),
        lambda now: _by_hand("DELETE FROM features_transaction WHERE occurred_at > %s", now - DAY * 9),
        lambda now: _by_hand("DELETE FROM features_transaction WHERE customer_id = 'c1'"),
        lambda now: Transaction.objects.filter(customer_id="c0").delete(),
        lambda now: record([payment("new", now - 8 * DAY, customer="new", merchant="new", is_fraud=True)]),
    ],
)  # fmt: skip
def test_whatever_changed_the_worker_derives_what_a_build_would(
    now: datetime, change: Callable[[datetime], None]
) -> None:
    """Entity by entity, with the same numbers; and of whom the ledger has nothing any more there is no row."""
    before = _stored()
    change(now)
    behind = _behind()
    assert behind
    report = catch_up(now=now)
    assert {group for group, _ in _behind()} <= set(EMBEDDINGS)
    assert not report.behind
    derived = _stored()
    assert derived != before or all(group.endswith("profile") for group, _ in behind) or "other" in _ids()
    assert {key for key in derived.keys() | before.keys() if derived.get(key) != before.get(key)} <= behind
    FeatureRow.objects.update(deleted_at=now)
    build(BUILT_GROUPS, as_of=now, now=now)
    assert _stored() == derived
    assert not OutdatedFeature.objects.exists()


def _ids() -> set[str]:
    return set(Transaction.objects.values_list("id", flat=True))


def test_a_truncate_leaves_no_feature_unflagged(now: datetime) -> None:
    """And the worker takes all rows away."""
    _by_hand("TRUNCATE features_transaction")
    assert len(_behind()) == FeatureRow.objects.count()
    catch_up(now=now)
    assert not _stored()


def test_a_label_makes_only_the_merchant_risk_of_its_merchant_wait(now: datetime) -> None:
    """If the windows hold its transaction, and if it is news: nobody has said anything counts as genuine."""
    Transaction.objects.filter(id__in=["10-0", "3-1", "12-2"]).update(is_fraud=None)
    assert _behind() == set()
    for transaction_id, is_fraud in (("10-0", False), ("3-1", True), ("12-2", True)):
        report_labels([NewLabel(transaction_id, is_fraud)], client="k", now=now)
    assert _behind() == {("merchant_risk", "m2")}
    outcome = _read(("merchant_risk", "m2"), max_age_s=0)["merchant_risk", "m2"]
    assert outcome.stale and set(outcome.degradations) >= FLAGS
    moment = now + timedelta(seconds=1)
    catch_up(now=moment)
    assert _behind() == set()
    # A report that comes later than labels do counts from its own moment on.
    assert FeatureRow.objects.get(group="merchant_risk", entity_id="m2").as_of == moment


def test_a_score_keeps_its_features_true_and_leaves_no_line(now: datetime) -> None:
    """The activity is written with the ledger."""
    new = NewTransaction("scored", now, "c1", "m1", 5.0, "EUR")
    with transaction.atomic():
        recorded = ingest.record(connection.connection, [new], now=now)
    assert recorded.activity
    assert _behind() == set()
    _by_hand(_INSERT, now - 3 * DAY)  # the next transaction of the same session is nobody's score
    assert ("customer_activity", "c1") in _behind()


def test_a_score_does_not_continue_a_list_that_is_behind(now: datetime) -> None:
    """Also where the number of its transactions is still the ledger's."""
    _by_hand("UPDATE features_transaction SET amount = 999 WHERE id = '2-1'")
    new = NewTransaction("scored", now, "c1", "m1", 5.0, "EUR")
    with transaction.atomic():
        recorded = ingest.record(connection.connection, [new], now=now)
    (entry,) = recorded.activity.values()
    assert 999.0 in (entry.values or ())


def test_one_statement_writes_one_line_for_a_group_of_an_entity(now: datetime) -> None:
    """Whatever the number of its rows; and none for what it does not change."""
    _by_hand(_INSERT, now - 3 * DAY)
    assert OutdatedFeature.objects.count() == 5  # no merchant risk: its windows end seven days before
    _by_hand("UPDATE features_transaction SET amount = amount")
    _by_hand("UPDATE features_transaction SET amount = 7 WHERE id LIKE 'by-hand-%%'")
    assert OutdatedFeature.objects.count() == 5


def test_what_commits_after_the_worker_has_looked_waits_for_its_next_visit(now: datetime) -> None:
    """An import that is under way makes nobody wait: the line that it relies on is left until it has ended."""
    _by_hand(_INSERT, now - 3 * DAY)
    with second_session() as other:
        other.execute("INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount) "
                      "VALUES ('late', now() - interval '2 days', 'c1', 'm1', 7)")  # fmt: skip
        catch_up(now=now)
        build(BUILT_GROUPS, as_of=now, now=now)
        assert ("customer_activity", "c1") in _behind()
        other.commit()
    assert ("customer_activity", "c1") in _behind()
    catch_up(now=now)
    assert ("customer_activity", "c1") not in _behind()
    assert 7.0 in FeatureRow.objects.get(group="customer_activity", entity_id="c1").values


def test_a_change_beside_the_worker_brings_a_line_of_its_own(now: datetime) -> None:
    """Where the worker has removed the old one and not committed: it may have read the ledger already."""
    _by_hand(_INSERT, now - 3 * DAY)
    with second_session() as worker:
        worker.execute("DELETE FROM features_outdatedfeature")
        _by_hand("UPDATE features_transaction SET amount = 7 WHERE id = 'by-hand-1'")
        worker.commit()
    assert ("customer_activity", "c1") in _behind()


def test_what_is_rolled_back_leaves_nothing(now: datetime) -> None:
    """Lines are of the transaction that changes the ledger."""
    with second_session() as other:
        other.execute("DELETE FROM features_transaction WHERE customer_id = 'c1'")
        other.rollback()
    assert _behind() == set()


def test_a_run_without_time_leaves_the_rest_for_the_next(now: datetime) -> None:
    """Chunk by chunk; what was done stays done."""
    _by_hand(_INSERT, now - 3 * DAY)
    ticks = iter(range(1_000))
    report = catch_up(now=now, most_s=2.0, clock=lambda: float(next(ticks)))
    assert report.rows == {"customer_activity": 1}
    assert {of.group for of in report.behind} == {"customer_profile", "merchant_profile"}
    assert not catch_up(now=now).behind


def test_a_group_that_is_being_built_is_left_to_the_next_visit(now: datetime) -> None:
    """Nobody waits for a build of minutes; its lines stay, and so do the flags."""
    _by_hand(_INSERT, now - 3 * DAY)
    with second_session() as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", build_locks(["merchant_profile"]))
        report = catch_up(now=now)
    assert report.busy == ["merchant_profile"]
    assert {of.group for of in report.behind} == {"merchant_profile"}


def test_a_view_of_the_past_takes_no_flag_away(now: datetime) -> None:
    """It is not what the ledger says now."""
    _by_hand(_INSERT, now - 3 * DAY)
    behind = _behind()
    build(BUILT_GROUPS, as_of=now - DAY, now=now)
    assert _behind() == behind


def test_embeddings_wait_for_a_build_that_is_not_made_without_end(now: datetime) -> None:
    """They are due again a while after their last build; a build takes the flags away."""
    key = ("customer_embedding", "c1")
    assert not overdue_embeddings(now=now + DAY)
    _by_hand(_INSERT, now - 3 * DAY)
    catch_up(now=now)
    assert _read(key, max_age_s=0)[key].stale
    assert not overdue_embeddings(now=now + EMBEDDINGS_EVERY / 2)
    assert overdue_embeddings(now=now + EMBEDDINGS_EVERY)
    build(EMBEDDINGS, as_of=now, now=now)
    assert not _read(key, max_age_s=0)[key].stale


def test_the_doctor_says_how_many_wait_and_since_when(now: datetime) -> None:
    """As long as a worker may still be at it, all is well."""
    (found,) = diagnose_ledger()
    assert (found.level, found.detail) == (Level.OK, "no feature is behind it")
    _by_hand(_INSERT, now - 3 * DAY)
    levels = {found.level for found in diagnose_ledger()}
    assert levels == {Level.OK}
    OutdatedFeature.objects.update(at=now - timedelta(hours=2))
    first, second = diagnose_ledger()
    assert first.level is second.level is Level.WARN
    assert "customer_activity of 1 entities for 7,2" in first.detail and "beat" in first.fix
    assert "embedding" in second.detail and "build_features" in second.fix


@pytest.mark.parametrize("rows", [1, 900])
def test_an_import_ends_with_features_that_are_true(now: datetime, tmp_path: Path, rows: int) -> None:
    """Of its customers and merchants; it says what it derived, and what waits for a build."""
    file = tmp_path / "payments.csv"
    lines = [
        f"i{n},{now - 2 * DAY - n * timedelta(minutes=1):%Y-%m-%d %H:%M:%S},c{n % 3},m{n % 3},3.00" for n in range(rows)
    ]
    file.write_text("\n".join(["transaction_id,occurred_at,customer_id,merchant_id,amount", *lines]) + "\n")
    out = StringIO()
    call_command("import_transactions", file, json=True, stdout=out)
    result = json.loads(out.getvalue())
    assert result["imported"] == rows
    entities = min(rows, 3)
    assert result["features"]["customer_activity"] == entities
    assert result["behind"] == dict.fromkeys(sorted(EMBEDDINGS), entities)
    caught_up = _stored()
    key = ("customer_activity", "c0")
    assert len(_read(key, max_age_s=0)[key].values or ()) == 1 + 3 * (32 + -(-rows // 3))
    build(BUILT_GROUPS, as_of=now, now=now)
    assert _stored() == caught_up


def test_a_simulation_ends_with_features_that_are_true(now: datetime) -> None:
    """As an import."""
    call_command("simulate_transactions", customers=20, merchants=10, days=20, json=True, stdout=StringIO())
    assert {of.group for of in outdated.waiting()} <= set(EMBEDDINGS)
    caught_up = _stored()
    moment = datetime.now(UTC)
    build(BUILT_GROUPS, as_of=moment, now=moment)
    differing = {key for key, values in _stored().items() if caught_up.get(key) != values}
    assert {group for group, _ in differing} <= {"merchant_risk"}  # half an hour may have ended in between
