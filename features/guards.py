"""What the database itself must hold so that no change of a feature row escapes the cache, and what of it is broken.

Versions and journal are the work of triggers (`migrations/0002_versions.py`, `0005_journal.py`). Who owns the table can
switch them off, and whatever is written meanwhile is seen by nobody (FRESHNESS, sections 2 and 12).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.db import connection
from django.db.backends.utils import CursorWrapper

TABLE = "features_featurerow"
SEQUENCE = "features_version_seq"
TRIGGERS = {
    "features_draw_version": "0002_versions",
    "features_refuse_delete": "0002_versions",
    "features_refuse_truncate": "0002_versions",
    "features_journal_insert": "0005_journal",
    "features_journal_update": "0005_journal",
    "features_journal_delete": "0005_journal",
    "features_raise_epochs": "0005_journal",
}
"""On the table, with the migration that makes each. A trigger of this name that does something else is not noticed."""
LEDGER_TABLE = "features_transaction"
LEDGER_TRIGGERS = {
    "features_note_insert": "0013_outdated",
    "features_note_update": "0013_outdated",
    "features_note_delete": "0013_outdated",
    "features_note_truncate": "0013_outdated",
}
"""On the ledger: they say whose features are behind a change of it."""
_ALWAYS = "A"
_STATES = {"O": "not for changes that arrive by replication", "R": "for changes that arrive by replication only"}
_VOID = (
    "then UPDATE features_cachepartition SET epoch = epoch + 1: what was written meanwhile nobody has told the cache"
)
_BEHIND = "then run `manage.py build_features`: what changed in the ledger meanwhile is in no feature, and not flagged"
_ASYNCHRONOUS = """
SELECT coalesce('role ' || quote_ident(role.rolname), 'every role') FROM pg_db_role_setting AS setting
LEFT JOIN pg_roles AS role ON role.oid = setting.setrole
LEFT JOIN pg_database AS database ON database.oid = setting.setdatabase
WHERE (setting.setdatabase = 0 OR database.datname = current_database())
    AND EXISTS (SELECT FROM unnest(setting.setconfig) AS line WHERE line ~* '^synchronous_commit=(off|false|no|0)$')
ORDER BY 1
"""


class Broken(NamedTuple):
    """One guard that does not hold."""

    problem: str
    fix: str


def broken_guards() -> list[Broken]:
    """Empty if all hold, and where the table is not there yet. Raises Django's database errors."""
    with connection.cursor() as cursor:
        if _one(cursor, "SELECT to_regclass(%s)", TABLE) is None:
            return []
        return [
            *_of_triggers(cursor, TABLE, TRIGGERS, then=_VOID),
            *_of_triggers(cursor, LEDGER_TABLE, LEDGER_TRIGGERS, then=_BEHIND),
            *_of_sequence(cursor),
            *_of_commits(cursor),
        ]


def _of_triggers(cursor: CursorWrapper, table: str, triggers: Mapping[str, str], *, then: str) -> list[Broken]:
    cursor.execute("SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = to_regclass(%s)", [table])
    states = dict(cursor.fetchall())
    broken = []
    for name, migration in triggers.items():
        state = states.get(name)
        if state is None:
            fix = f"run the CREATE TRIGGER and ENABLE ALWAYS of features/migrations/{migration}.py; {then}"
            broken.append(Broken(f"the trigger {name} is not there", fix))
        elif state != _ALWAYS:
            how = _STATES.get(state, "never")
            fix = f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}; {then}"
            broken.append(Broken(f"the trigger {name} fires {how}", fix))
    return broken


def _of_sequence(cursor: CursorWrapper) -> list[Broken]:
    """With a cache each session draws from a range of its own, and a later commit may get the smaller version."""
    cursor.execute(
        "SELECT seqcache, seqincrement, seqcycle FROM pg_sequence WHERE seqrelid = to_regclass(%s)", [SEQUENCE]
    )
    row = cursor.fetchone()
    if row is None:
        return [Broken(f"the sequence {SEQUENCE} is not there", "make it as features/migrations/0002_versions.py does")]
    cache, increment, cycles = row
    broken = []
    if cache != 1:
        problem = f"the sequence {SEQUENCE} has a cache of {cache}: versions go backwards"
        broken.append(Broken(problem, f"ALTER SEQUENCE {SEQUENCE} CACHE 1; {_VOID}"))
    if increment < 1 or cycles:
        problem = f"the sequence {SEQUENCE} does not only go up"
        broken.append(Broken(problem, f"ALTER SEQUENCE {SEQUENCE} INCREMENT 1 NO CYCLE; {_VOID}"))
    newest = _one(cursor, f"SELECT max(version) FROM {TABLE}") or 0
    if newest > _one(cursor, f"SELECT last_value FROM {SEQUENCE}"):
        problem = f"the sequence {SEQUENCE} is behind the rows: versions go back, and copies refuse what is newer"
        fix = f"SELECT setval('{SEQUENCE}', (SELECT max(version) FROM {TABLE})); {_VOID}"
        broken.append(Broken(problem, fix))
    return broken


def _of_commits(cursor: CursorWrapper) -> list[Broken]:
    """Otherwise a version may be seen, be lost in a crash, and be given again to another value."""
    cursor.execute(_ASYNCHRONOUS)
    broken = [
        Broken(f"synchronous_commit is off for {whose}", "ALTER ROLE or ALTER DATABASE ... RESET synchronous_commit")
        for (whose,) in cursor.fetchall()
    ]
    if not broken and _one(cursor, "SELECT current_setting('synchronous_commit')") == "off":
        broken.append(Broken("synchronous_commit is off", "set it to on, in postgresql.conf or in DATABASE_URL"))
    return broken


def _one(cursor: CursorWrapper, statement: str, *parameters: str) -> Any:
    cursor.execute(statement, parameters)
    row = cursor.fetchone()
    return row[0] if row is not None else None
