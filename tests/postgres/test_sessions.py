"""Sessions have limits on both sides, however they were made, and state what they rely on."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import django.db
import psycopg
import pytest
from django.db import connection, transaction

from mlserve.postgres.backend.base import DatabaseWrapper
from mlserve.postgres.direct import DirectAddressNeeded, connect_directly
from mlserve.postgres.failures import Failure, failure_of
from mlserve.postgres.sessions import (
    LIMITS,
    POOLER_OPTION,
    BoundedConnection,
    Kind,
    answer_within,
    session_of,
)
from mlserve.settings.env import child_environment
from tests.features.sessions import conninfo
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.postgres.server_defaults import drop_sessions, server_default

pytestmark = pytest.mark.django_db(transaction=True)


def _setting(name: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", (name,))
        return str(cursor.fetchone()[0])


@pytest.fixture
def without_pool() -> Iterator[DatabaseWrapper]:
    """As with MLSERVE_DB_POOL_MAX_SIZE=0."""
    known = connection.settings_dict
    options = {name: value for name, value in known["OPTIONS"].items() if name != "pool"}
    wrapper = DatabaseWrapper({**known, "CONN_MAX_AGE": None, "OPTIONS": options}, alias=connection.alias)
    assert wrapper.pool is None
    yield wrapper
    wrapper.close()


def test_the_servers_limits_lie_below_the_clients() -> None:
    """Otherwise a client leaves while its backend goes on waiting, and nobody hears why."""
    for limits in LIMITS.values():
        assert 0 < limits.lock_s < limits.statement_s < limits.answer_s
        assert limits.idle_in_transaction_s > 0


@pytest.mark.parametrize("kind", Kind)
def test_the_server_knows_the_limits_of_the_kind(kind: Kind) -> None:
    """Whatever kind the connection was of before; a transaction keeps what it began with."""
    with session_of(Kind.BUILD):
        assert _setting("statement_timeout") == "1h"
    with session_of(kind), connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, setting::float8 / 1000 FROM pg_settings WHERE name IN "
            "('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout')"
        )
        assert dict(cursor.fetchall()) == {
            "statement_timeout": LIMITS[kind].statement_s,
            "lock_timeout": LIMITS[kind].lock_s,
            "idle_in_transaction_session_timeout": LIMITS[kind].idle_in_transaction_s,
        }
    with session_of(Kind.BUILD), transaction.atomic():
        assert _setting("statement_timeout") == "1h"
        with session_of(kind):
            assert _setting("statement_timeout") == "1h"


@pytest.mark.parametrize(
    ("setting", "value"), [("synchronous_commit", "off"), ("default_transaction_isolation", "serializable")]
)
def test_a_session_that_is_there_keeps_what_it_relies_on(setting: str, value: str) -> None:
    """A default that changes under it changes nothing for it."""
    before = _setting(setting)
    with server_default(setting, value):
        assert _setting(setting) == before != value


def test_a_session_states_what_it_relies_on() -> None:
    """Whatever the server's defaults are."""
    drop_sessions()
    with (
        server_default("default_transaction_isolation", "repeatable read"),
        server_default("synchronous_commit", "off"),
        server_default("extra_float_digits", "-10"),
        server_default("bytea_output", "escape"),
        server_default("lock_timeout", "1ms"),
    ):
        found = {
            name: _setting(name)
            for name in ("default_transaction_isolation", "synchronous_commit", "bytea_output", "TimeZone")
        }
        assert found == {
            "default_transaction_isolation": "read committed",
            "synchronous_commit": "on",
            "bytea_output": "hex",
            "TimeZone": "UTC",
        }
        assert int(_setting("client_connection_check_interval").removesuffix("s")) == 1
        with transaction.atomic():
            assert _setting("transaction_isolation") == "read committed"
        with connection.cursor() as cursor:
            cursor.execute("SELECT 0.1::float8 + 0.2::float8")
            assert cursor.fetchone() == (0.1 + 0.2,)
    drop_sessions()


def test_stronger_commits_than_ours_stay() -> None:
    """Whoever waits for replicas to have applied them has a reason."""
    drop_sessions()
    with server_default("synchronous_commit", "remote_apply"):
        assert _setting("synchronous_commit") == "remote_apply"
    drop_sessions()


def test_a_lock_is_waited_for_no_longer_than_the_kind_allows() -> None:
    """The server ends the wait and says why: it is contention, and no outage."""
    with closing(psycopg.connect(conninfo())) as other:
        other.execute("SELECT pg_advisory_xact_lock(42)")
        with session_of(Kind.JOURNAL), pytest.raises(django.db.DatabaseError) as caught, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(42)")
    assert failure_of(caught.value) is Failure.CONTENTION


def test_a_slow_statement_is_ended_by_the_server() -> None:
    """Before the client gives up on the connection, which stays usable."""
    with session_of(Kind.REQUEST):
        with pytest.raises(django.db.DatabaseError) as caught, connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(30)")
        assert failure_of(caught.value) is Failure.TIMEOUT
        assert _setting("statement_timeout") == "800ms"


def test_a_frozen_server_is_given_up_without_a_pool_too(without_pool: DatabaseWrapper, postgres: ServerHandle) -> None:
    """The bound belongs to the connection. So does the look whether a connection is still good."""
    with without_pool.cursor() as cursor:
        cursor.execute("SELECT 1")
    postgres.freeze()
    with session_of(Kind.REQUEST), pytest.raises(django.db.DatabaseError) as caught, without_pool.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert failure_of(caught.value) is Failure.TIMEOUT
    postgres.thaw()
    without_pool.close()
    with without_pool.cursor() as cursor:
        cursor.execute("SELECT 1")
        postgres.freeze()
    assert not without_pool.is_usable()  # a command's limits would be an hour


def test_a_frozen_server_is_given_up_by_a_command_that_asks_for_a_pooled_connection(postgres: ServerHandle) -> None:
    """The pool asks first whether the connection still works: that is no part of the command's work."""
    _setting("TimeZone")
    connection.close()
    postgres.freeze()
    ended = threading.Event()

    def ask() -> None:
        try:
            with session_of(Kind.BUILD), pytest.raises(django.db.DatabaseError):
                _setting("TimeZone")
        finally:
            connection.close()
            ended.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert ended.wait(30)
    asking.join()


def test_a_backend_whose_client_has_gone_does_not_wait_on(postgres: ServerHandle) -> None:
    """A killed process leaves nobody behind a lock, although a build may wait for half a minute."""
    script = (
        "import django; django.setup()\n"
        "from django.db import connection\n"
        "connection.settings_dict['NAME'] = {name!r}\n"
        "with connection.cursor() as cursor:\n"
        "    cursor.execute('SET lock_timeout = 0')\n"
        "    cursor.execute('SET application_name = orphan')\n"
        "    cursor.execute('SELECT pg_advisory_xact_lock(43)')\n"
    ).format(name=connection.settings_dict["NAME"])
    with closing(psycopg.connect(conninfo())) as other:
        other.execute("SELECT pg_advisory_xact_lock(43)")
        environment = child_environment(DJANGO_SETTINGS_MODULE="mlserve.settings.test")
        process = subprocess.Popen([sys.executable, "-c", script], env=environment)
        until(lambda: _waiting("orphan") == 1)
        process.kill()
        process.wait()
        until(lambda: _waiting("orphan") == 0)


def _waiting(name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'", (name,)
        )
        return int(cursor.fetchone()[0])


def test_a_tighter_limit_of_the_caller_counts_and_a_wider_one_does_not(postgres: ServerHandle) -> None:
    """`answer_within` is for parts of a wait."""
    with connect_directly("mlserve test", settings={}) as session:
        with session_of(Kind.BUILD), answer_within(0.05), pytest.raises(psycopg.OperationalError, match=r"0\.05 s"):
            session.execute("SELECT pg_sleep(5)")
        assert session.closed
    with connect_directly("mlserve test", settings={}) as session:
        postgres.freeze()
        with session_of(Kind.REQUEST), answer_within(50), pytest.raises(psycopg.OperationalError, match="1 s"):
            session.execute("SELECT 1")


def test_behind_a_transaction_pooler_limits_go_with_the_transaction(without_pool: DatabaseWrapper) -> None:
    """The session itself is left as it was: the next client would find what it was told."""
    without_pool.settings_dict["OPTIONS"] = {
        **without_pool.settings_dict["OPTIONS"],
        POOLER_OPTION: True,
        "prepare_threshold": None,
    }
    with session_of(Kind.JOURNAL):
        with without_pool.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout')")
            assert cursor.fetchone() == ("0",)
        with transaction_of(without_pool), without_pool.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout'), current_setting('transaction_isolation')")
            assert cursor.fetchone() == ("150ms", "read committed")
        with without_pool.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout')")
            assert cursor.fetchone() == ("0",)


@contextmanager
def transaction_of(wrapper: DatabaseWrapper) -> Iterator[None]:
    """`transaction.atomic` for a connection that is in no registry."""
    wrapper.set_autocommit(False)
    try:
        yield
    finally:
        wrapper.commit()
        wrapper.set_autocommit(True)


def test_who_needs_a_session_says_so_behind_a_transaction_pooler(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Instead of waiting for ever; with PostgreSQL's own address it has one."""
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], POOLER_OPTION, True)
    with pytest.raises(DirectAddressNeeded, match="DATABASE_DIRECT_URL"):
        connect_directly("mlserve relay", settings={})
    settings.DATABASE_DIRECT_URL = conninfo()
    with connect_directly("mlserve relay", settings={"enable_seqscan": "off"}) as session:
        assert isinstance(session, BoundedConnection)
        row = session.execute(
            "SELECT current_setting('enable_seqscan'), current_setting('application_name')"
        ).fetchone()
        assert row == ("off", "mlserve relay")
