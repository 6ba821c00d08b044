"""The guards of feature rows, each broken once on a real PostgreSQL. What a test breaks, its transaction takes back."""

from collections.abc import Callable

import pytest
from django.core.checks import run_checks
from django.db import connection

from features.diagnosis import diagnose_guards
from features.guards import LEDGER_TABLE, LEDGER_TRIGGERS, SEQUENCE, TABLE, TRIGGERS, broken_guards
from mlserve.platform.diagnosis import Level

pytestmark = pytest.mark.django_db


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _current_user() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_user)")
        (name,) = cursor.fetchone()
    return str(name)


def _current_database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_database())")
        (name,) = cursor.fetchone()
    return str(name)


def test_all_guards_hold_after_migrate() -> None:
    """One line, and no check complains."""
    (found,) = diagnose_guards()
    assert found.level is Level.OK
    assert f"{len(TRIGGERS)} triggers of the feature rows and {len(LEDGER_TRIGGERS)} of the ledger" in found.detail
    assert "mlserve.W006" not in {message.id for message in run_checks(databases=["default"])}


@pytest.mark.parametrize(("table", "triggers"), [(TABLE, TRIGGERS), (LEDGER_TABLE, LEDGER_TRIGGERS)])
def test_the_triggers_are_those_of_the_table(table: str, triggers: dict[str, str]) -> None:
    """None is forgotten in the list."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal", [table])
        assert {name for (name,) in cursor.fetchall()} == set(triggers)


@pytest.mark.parametrize("trigger", LEDGER_TRIGGERS)
def test_a_trigger_of_the_ledger_that_does_not_fire(trigger: str) -> None:
    """What it would have told is in no feature and not flagged: the line says so, and its fix mends it."""
    _execute(f"ALTER TABLE {LEDGER_TABLE} DISABLE TRIGGER {trigger}")
    (found,) = diagnose_guards()
    assert (found.level, found.detail) == (Level.FAIL, f"the trigger {trigger} fires never")
    assert "build_features" in found.fix
    _execute(found.fix.partition(";")[0])
    assert broken_guards() == []


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER TABLE {table} DISABLE TRIGGER {trigger}", "fires never"),
        ("ALTER TABLE {table} ENABLE TRIGGER {trigger}", "fires not for changes that arrive by replication"),
        ("ALTER TABLE {table} ENABLE REPLICA TRIGGER {trigger}", "fires for changes that arrive by replication only"),
        ("DROP TRIGGER {trigger} ON {table}", "is not there"),
    ],
    ids=["disabled", "origin", "replica", "dropped"],
)
def test_a_trigger_that_does_not_always_fire(trigger: str, change: str, problem: str) -> None:
    """The line names it and says what mends it, and that the copies of before are not to be believed."""
    _execute(change.format(table=TABLE, trigger=trigger))
    (found,) = diagnose_guards()
    assert (found.level, found.detail) == (Level.FAIL, f"the trigger {trigger} {problem}")
    assert "ENABLE ALWAYS" in found.fix and "SET epoch = epoch + 1" in found.fix


def test_a_fix_mends_what_it_names() -> None:
    """Word for word, up to its semicolon."""
    _execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER features_journal_update")
    _execute(f"ALTER SEQUENCE {SEQUENCE} CACHE 20 CYCLE")
    broken = broken_guards()
    assert len(broken) == 3
    for guard in broken:
        _execute(guard.fix.partition(";")[0])
    assert broken_guards() == []


@pytest.mark.parametrize("change", ["CACHE 2", "INCREMENT -1", "CYCLE"])
def test_a_sequence_that_may_go_backwards(change: str) -> None:
    """With a cache, downwards, or around."""
    _execute(f"ALTER SEQUENCE {SEQUENCE} {change}")
    (found,) = diagnose_guards()
    assert found.level is Level.FAIL
    assert SEQUENCE in found.detail and f"ALTER SEQUENCE {SEQUENCE}" in found.fix


def test_a_sequence_that_was_restored_behind_the_rows() -> None:
    """A table that was restored alone, or a logical copy, which leaves sequences out."""
    _execute(
        f"""INSERT INTO {TABLE} ("group", entity_id, "values", as_of) VALUES ('merchant_risk', 'm1', '{{1}}', now())"""
    )
    _execute(f"UPDATE {TABLE} SET as_of = now()")
    _execute(f"SELECT setval('{SEQUENCE}', 1)")
    (found,) = diagnose_guards()
    assert found.level is Level.FAIL and "behind the rows" in found.detail
    _execute(found.fix.partition(";")[0])
    assert broken_guards() == []


def test_a_sequence_that_is_not_there() -> None:
    _execute(f"ALTER SEQUENCE {SEQUENCE} RENAME TO another")
    (found,) = diagnose_guards()
    assert (found.level, found.detail) == (Level.FAIL, f"the sequence {SEQUENCE} is not there")


@pytest.mark.parametrize("value", ["off", "no", "FALSE"])
@pytest.mark.parametrize(
    ("statement", "whose"),
    [
        (lambda value: f"ALTER ROLE {_current_user()} SET synchronous_commit = {value}", "role "),
        (lambda value: f"ALTER DATABASE {_current_database()} SET synchronous_commit = {value}", "every role"),
        (
            lambda value: (
                f"ALTER ROLE {_current_user()} IN DATABASE {_current_database()} SET synchronous_commit = {value}"
            ),
            "role ",
        ),
    ],
    ids=["role", "database", "both"],
)
def test_commits_that_do_not_wait_for_the_disk(statement: Callable[[str], str], whose: str, value: str) -> None:
    """Of any role, since any may write; in this database."""
    _execute(statement(value))
    (found,) = diagnose_guards()
    assert found.level is Level.FAIL
    assert found.detail.startswith(f"synchronous_commit is off for {whose}")
    assert "RESET synchronous_commit" in found.fix


def test_commits_of_this_session_count_too() -> None:
    """Wherever that comes from; waiting for more than the own disk is as good as `on`."""
    _execute("SET LOCAL synchronous_commit = off")
    (found,) = diagnose_guards()
    assert (found.level, found.detail) == (Level.FAIL, "synchronous_commit is off")
    for enough in ("on", "local", "remote_write", "remote_apply"):
        _execute(f"SET LOCAL synchronous_commit = {enough}")
        assert broken_guards() == []


def test_a_setting_of_another_database_is_none_of_ours() -> None:
    _execute("ALTER DATABASE postgres SET synchronous_commit = off")
    assert broken_guards() == []


def test_a_database_without_the_table_has_nothing_to_guard() -> None:
    """As before the first `migrate`."""
    _execute(f"ALTER TABLE {TABLE} RENAME TO another")
    assert broken_guards() == []


def test_the_check_says_the_same_with_a_hint() -> None:
    """W006, of a check that may ask the database; a warning, so that `migrate` can mend it."""
    _execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER features_draw_version")
    assert "mlserve.W006" not in {message.id for message in run_checks()}
    (message,) = [message for message in run_checks(databases=["default"]) if message.id == "mlserve.W006"]
    assert "features_draw_version fires never" in message.msg
    assert "ENABLE ALWAYS TRIGGER features_draw_version" in (message.hint or "")
    assert not message.is_serious()
