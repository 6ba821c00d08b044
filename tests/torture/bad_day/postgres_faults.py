"""What goes wrong with PostgreSQL: gone, silent, read-only, full, locked, restored from a copy."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import psycopg

from mlserve.servers.postgres import PostgresServer
from mlserve.servers.process import choose_port, send, server_environment
from mlserve.servers.record import Record
from tests.torture.bad_day.conduct import ALL, WRITES, Allowed
from tests.torture.bad_day.fault import Day, Fault
from tests.torture.bad_day.judge import Stored
from tests.torture.bad_day.testbed import Testbed

AWAY: Final = Allowed(refusals=ALL - {"live", "forget"}, spools=True, answered=0.5, slowest_s=8.0)
"""PostgreSQL answers nobody: decisions go to the disk, and what only it knows is refused. So are scores for as long as
the first ones wait in vain: they hold all places, and a fault of some seconds consists of that for a good part."""
LOCKED: Final = replace(AWAY, answered=0.3)
"""A whole table: every commit waits for as long as a lock may be waited for."""
_RESTORE_S: Final = 90.0


def faults(hot_customer: str) -> list[Fault]:
    """`hot_customer`: whose row is locked."""
    locked = partial(Fault, least_s=4.0)
    return [
        Fault(name="postgres restarted", play=_restart, allowed=AWAY, extra_s=2.0),
        Fault(name="postgres killed", play=_kill, allowed=AWAY, extra_s=2.0),
        Fault(name="postgres frozen", play=_freeze, allowed=AWAY, least_s=4.0),
        Fault(
            name="postgres read-only",
            play=partial(_setting, name="default_transaction_read_only", value="on"),
            allowed=Allowed(refusals=WRITES, spools=True, answered=0.95),
        ),
        Fault(
            name="postgres repeatable read",
            play=partial(_setting, name="default_transaction_isolation", value="repeatable read"),
        ),
        Fault(name="postgres full", play=_fill_connections, allowed=AWAY, extra_s=3.0),
        Fault(name="postgres sessions ended", play=_end_sessions, allowed=AWAY),
        locked(
            name="customer locked",
            play=_lock_customer,
            allowed=Allowed(held_customer=hot_customer, answered=0.75),
        ),
        locked(name="decisions locked", play=partial(_lock_table, table="predictions_decision"), allowed=LOCKED),
        locked(name="features locked", play=partial(_lock_table, table="features_featurerow"), allowed=LOCKED),
        Fault(
            name="postgres restored from a copy",
            play=_restore,
            allowed=AWAY,
            least_s=4.0,
            extra_s=12.0,
            recovers_within_s=45.0,
        ),
        Fault(
            name="disk full, postgres away",
            play=_fill_disk,
            allowed=replace(AWAY, answered=0.0),
            least_s=6.0,
            usual_s=12.0,
            extra_s=2.0,
        ),
        Fault(
            name="web killed, postgres away",
            play=_kill_web,
            allowed=replace(AWAY, answered=0.2, broken_webs=frozenset({0})),
            least_s=4.0,
            usual_s=10.0,
            extra_s=4.0,
        ),
    ]


def _restart(day: Day, lasts_s: float) -> None:
    with _away(day.bed, day.bed.postgres.stop):
        day.bed.pause(lasts_s)


def _kill(day: Day, lasts_s: float) -> None:
    with _away(day.bed, day.bed.postgres.kill):
        day.bed.pause(lasts_s)


@contextmanager
def _away(bed: Testbed, end: Callable[[], None]) -> Iterator[None]:
    end()
    try:
        yield
    finally:
        bed.postgres.ensure()


def _freeze(day: Day, lasts_s: float) -> None:
    frozen = day.bed.postgres.pids()
    send(frozen, signal.SIGSTOP)
    try:
        day.bed.pause(lasts_s)
    finally:
        send(frozen, signal.SIGCONT)


def _setting(day: Day, lasts_s: float, *, name: str, value: str) -> None:
    """For all sessions that there are and that come."""
    with day.bed.database() as session:
        session.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        session.execute("SELECT pg_reload_conf()")
        try:
            day.bed.pause(lasts_s)
        finally:
            session.execute(f"ALTER SYSTEM RESET {name}".encode())
            session.execute("SELECT pg_reload_conf()")


def _fill_connections(day: Day, lasts_s: float) -> None:
    """Nobody else gets one, and those that ours had are gone."""
    with contextlib.ExitStack() as taken:
        keeper = taken.enter_context(day.bed.database())
        _take_all(day.bed, taken)
        keeper.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> 'bad-day'")
        _take_all(day.bed, taken)
        day.bed.pause(lasts_s)


def _take_all(bed: Testbed, taken: contextlib.ExitStack) -> None:
    refused = 0
    while refused < 5:
        try:
            taken.enter_context(contextlib.closing(bed.database()))
        except psycopg.OperationalError:
            refused += 1
            bed.pause(0.05)


def _end_sessions(day: Day, lasts_s: float) -> None:
    """Every second, as a pooler or an operator does it."""
    with day.bed.database() as session:
        for _ in range(max(1, round(lasts_s))):
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name <> 'bad-day' AND backend_type = 'client backend'"
            )
            day.bed.pause(1.0)


def _lock_customer(day: Day, lasts_s: float) -> None:
    with day.bed.database() as session, session.transaction():
        session.execute(
            "SELECT FROM features_featurerow WHERE \"group\" = 'customer_activity' AND entity_id = %s FOR UPDATE",
            (day.hot_customer,),
        )
        day.bed.pause(lasts_s)


def _lock_table(day: Day, lasts_s: float, *, table: str) -> None:
    with day.bed.database() as session, session.transaction():
        session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        day.bed.pause(lasts_s)


def _restore(day: Day, lasts_s: float) -> None:
    """A dump goes into another server, the old one goes on for a while and dies, the other one takes its address.

    What the old one took after the dump is lost: that is what a restore from a dump means, and the judge is told.
    """
    bed = day.bed
    old = bed.postgres
    assert old.url is not None and old.record is not None
    address = old.record
    copy = bed.another_postgres(f"copy-{os.urandom(4).hex()}")
    copy.ensure()
    _dump_and_restore(bed, old, copy)
    bed.pause(lasts_s)
    old.stop()
    day.restored()
    copied = {row.transaction_id for row in stored_decisions(copy)}
    with _elsewhere(old):
        day.lost_by_restore += [row for row in stored_decisions(old) if row.transaction_id not in copied]
    assert copy.url is not None
    with psycopg.connect(copy.url, autocommit=True) as session:
        session.execute(f"ALTER ROLE mlserve PASSWORD '{address.password}'".encode())
    copy.stop()
    address.write(copy.directory / "server.json")
    bed.postgres = copy
    copy.ensure()
    assert copy.record is not None and copy.record.port == address.port, "somebody has taken the port"


def _dump_and_restore(bed: Testbed, old: PostgresServer, copy: PostgresServer) -> None:
    assert old.url is not None and copy.url is not None
    options: dict[str, Any] = {"env": server_environment(), "check": True, "timeout": _RESTORE_S}
    dump = [bed.postgres_program("pg_dump"), "--format=custom", old.url]
    restore = [bed.postgres_program("pg_restore"), "--exit-on-error", f"--dbname={copy.url}"]
    dumped = subprocess.run(dump, stdout=subprocess.PIPE, **options).stdout
    subprocess.run(restore, input=dumped, **options)


@contextmanager
def _elsewhere(server: PostgresServer) -> Iterator[None]:
    """Runs on another port until the end of the block, so that nobody of ours finds it."""
    record = server.record
    assert record is not None
    Record(port=choose_port(None), password=record.password).write(server.directory / "server.json")
    server.ensure()
    try:
        yield
    finally:
        server.stop()


def stored_decisions(server: PostgresServer) -> list[Stored]:
    """Every decision that it has."""
    assert server.url is not None
    with psycopg.connect(server.url) as session:
        rows = session.execute(
            "SELECT d.transaction_id, d.score, d.decision, t.amount::float8 FROM predictions_decision AS d "
            "LEFT JOIN features_transaction AS t ON t.id = d.transaction_id"
        ).fetchall()
    return [Stored(transaction_id=row[0], score=row[1], decision=row[2], amount=row[3]) for row in rows]


def _fill_disk(day: Day, lasts_s: float) -> None:
    """At first there is still room for decisions, then there is none, also when PostgreSQL is back."""
    bed = day.bed
    with contextlib.ExitStack() as full:
        with _away(bed, bed.postgres.stop):
            bed.pause(lasts_s / 3)
            full.enter_context(bed.full_spool())
            bed.pause(lasts_s / 3)
        bed.pause(lasts_s / 3)


def _kill_web(day: Day, lasts_s: float) -> None:
    """Its spool file is nobody's then."""
    bed = day.bed
    with _away(bed, bed.postgres.stop):
        bed.pause(lasts_s / 2)
        for name, process in bed.processes().items():
            if name.partition("/")[0] == "web-0":
                process.kill()
        bed.pause(lasts_s / 2)
