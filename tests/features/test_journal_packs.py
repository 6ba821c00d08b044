"""What a line of the journal holds: up to 32 rows of one group, as one statement wrote them."""

from importlib import import_module
from typing import Any

import pytest
from django.db import connection

MIGRATION = import_module("features.migrations.0008_journal_packs")
MOST = 32
_MANY = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
SELECT name, 'e' || number, '{1}', now()
FROM generate_series(1, 50) AS number, (VALUES ('merchant_risk'), ('merchant_profile')) AS groups (name)
"""
_ROWS = 'SELECT "group", entity_id, version FROM features_featurerow ORDER BY version'
_TOLD = 'SELECT "group", entity_id, version FROM features_journal_row ORDER BY version'


def _execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def _fetch(sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


@pytest.fixture(autouse=True)
def empty(db: None) -> None:
    """No rows and no journal."""
    _execute("DELETE FROM features_featurerow; DELETE FROM features_journal")


def test_a_statement_of_many_rows_takes_few_lines() -> None:
    """Each row is told once, with its group and its version; no line is longer than a page takes uncompressed."""
    _execute(_MANY)
    assert _fetch(_TOLD) == _fetch(_ROWS)
    lines = [length for (length,) in _fetch("SELECT cardinality(entity_ids) FROM features_journal")]
    assert sum(lines) == 100
    assert max(lines) <= MOST
    assert len(lines) <= 8  # 100 rows in packs of 32, each of which may hold both groups


def test_a_purge_of_many_rows_tells_each() -> None:
    """With a number above its row's."""
    _execute(_MANY)
    ((newest,),) = _fetch("SELECT max(version) FROM features_featurerow")
    _execute("DELETE FROM features_journal; DELETE FROM features_featurerow")
    told = _fetch(_TOLD)
    assert len({(group, entity_id) for group, entity_id, _ in told}) == len(told) == 100
    assert all(version > newest for _, _, version in told)


@pytest.mark.parametrize(
    ("entity_ids", "versions", "told"),
    [
        ("{a,b}", "{1}", [("g", "a", 1)]),
        ("{a}", "{1,2}", [("g", "a", 1)]),
        ("{a,NULL,c}", "{1,2,3}", [("g", "a", 1), ("g", "c", 3)]),
        ("{}", "{}", []),
    ],
)
def test_a_line_by_hand_tells_what_is_a_pair(entity_ids: str, versions: str, told: list[Any]) -> None:
    """The rest of it is nothing that a reader could trip over."""
    _execute(
        f"""INSERT INTO features_journal ("group", entity_ids, versions) VALUES ('g', '{entity_ids}', '{versions}')"""
    )
    assert _fetch(_TOLD) == told


def test_the_journal_survives_the_migration_both_ways() -> None:
    """A relay that goes on from an old watermark finds every line, under the number of its transaction."""
    _execute(_MANY)
    _execute("UPDATE features_featurerow SET as_of = now() WHERE entity_id = 'e7'")
    before = _fetch("SELECT xid::text, at, * FROM features_journal_row ORDER BY version")
    _execute(MIGRATION.REVERSE)
    _execute("UPDATE features_featurerow SET as_of = now() WHERE entity_id = 'e8'")
    assert _fetch("SELECT count(*), count(DISTINCT version) FROM features_journal") == [(104, 104)]
    _execute(MIGRATION.FORWARD)
    after = _fetch("SELECT xid::text, at, * FROM features_journal_row ORDER BY version")
    assert after[:102] == before
    assert [row[-2] for row in after[102:]] == ["e8", "e8"]
    _execute(_MANY.replace("'e'", "'f'"))
    assert len(_fetch(_TOLD)) == 204
