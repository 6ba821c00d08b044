from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from features.models import FeatureRow, PolicyRevision, TtlPolicy

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 3, 2, tzinfo=UTC)


def _row(version: int = 0) -> FeatureRow:
    return FeatureRow(group="merchant_risk", entity_id="m1", values=[1.0], version=version, as_of=NOW)


def _execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def _copy() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM features_featurerow")
        with cursor.copy('COPY features_featurerow ("group", entity_id, "values", version, as_of) FROM STDIN') as copy:
            copy.write_row(("merchant_risk", "m1", [2.0], 1, NOW))


def _save() -> None:
    row = FeatureRow.objects.get()
    row.values = [2.0]
    row.version = 1
    row.save()


_WRITES: dict[str, Callable[[], object]] = {
    "save": _save,
    "update": lambda: FeatureRow.objects.update(values=[2.0], version=1),
    "bulk_create": lambda: FeatureRow.objects.bulk_create(
        [_row(version=1)], update_conflicts=True, unique_fields=["group", "entity_id"], update_fields=["version"]
    ),
    "raw SQL": lambda: _execute("UPDATE features_featurerow SET version = 1"),
    "soft delete": lambda: FeatureRow.objects.update(deleted_at=timezone.now()),
    "COPY": _copy,
    "ON CONFLICT": lambda: _execute(
        """INSERT INTO features_featurerow ("group", entity_id, "values", version, as_of)
        VALUES ('merchant_risk', 'm1', '{2}', 1, now())
        ON CONFLICT ("group", entity_id) DO UPDATE SET version = excluded.version"""
    ),
}


@pytest.mark.parametrize("way", _WRITES)
def test_every_way_of_writing_a_row_raises_its_version(way: str) -> None:
    """No writer can forget the version, set it or bring it back."""
    _row(version=10**15).save(force_insert=True)
    before = FeatureRow.objects.get().version
    assert 0 < before < 10**15
    _WRITES[way]()
    assert FeatureRow.objects.get().version > before


@pytest.mark.parametrize("statement", ["DELETE FROM features_featurerow", "TRUNCATE features_featurerow"])
def test_rows_cannot_be_removed_without_the_purge_setting(statement: str) -> None:
    """DELETE and TRUNCATE are refused, and say what to do instead."""
    _row().save(force_insert=True)
    with pytest.raises(IntegrityError, match="only deleted softly"), transaction.atomic():
        _execute("SET LOCAL mlserve.purge = ''")
        _execute(statement)
    assert FeatureRow.objects.count() == 1
    _execute(f"SET LOCAL mlserve.purge = 'on'; {statement}")
    assert FeatureRow.objects.count() == 0


def test_the_triggers_fire_on_a_logical_replica_too() -> None:
    """Applied changes draw versions: the triggers are ENABLE ALWAYS."""
    _row().save(force_insert=True)
    before = FeatureRow.objects.get().version
    _execute("SET LOCAL session_replication_role = 'replica'; UPDATE features_featurerow SET version = 1")
    assert FeatureRow.objects.get().version > before


def test_a_policy_edit_writes_one_revision_with_before_and_after() -> None:
    """Edits by `save`, `update` and SQL alike leave their trace."""
    seen = PolicyRevision.objects.count()
    policy = TtlPolicy.objects.get(name="merchant_risk")
    policy.fresh_for_s = 17
    policy.save()
    TtlPolicy.objects.filter(name="merchant_risk").update(use_l1=False)
    later, earlier = PolicyRevision.objects.all()[:2]
    assert PolicyRevision.objects.count() == seen + 2
    assert earlier.before is not None and later.before is not None
    assert (earlier.policy, earlier.before["fresh_for_s"], earlier.after["fresh_for_s"]) == ("merchant_risk", 3600, 17)
    assert (later.before["use_l1"], later.after["use_l1"]) == (True, False)
    assert "updated_at" not in later.after


def test_saving_a_policy_unchanged_writes_no_revision() -> None:
    """A new `updated_at` alone is no edit, so the policy version stands."""
    seen = PolicyRevision.objects.count()
    assert seen == TtlPolicy.objects.count(), "one revision for each policy when it was made"
    TtlPolicy.objects.get(name="merchant_risk").save()
    assert PolicyRevision.objects.count() == seen
