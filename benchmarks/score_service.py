"""A service to be measured: a database and a Redis database of its own, one web process, all gone afterwards.

The servers are those that the commands of this checkout use, so what is measured runs on what will serve; the data
are not, so nothing that anybody keeps is touched, and the figures do not depend on it.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import psycopg
import redis
from psycopg import sql

from benchmarks.contest import BenchmarkFailed, Progress
from benchmarks.http_load import post
from benchmarks.score_world import ScoreWorld
from mlserve.cache.watermark import name_of
from mlserve.settings import env

HOST = "127.0.0.1"
THREADS = 4
"""Of the one web process that score at once: as in the demo."""
_ALL_THREADS = 26
"""With which so many score."""
COMMITTING = 2 * THREADS
"""Connections where decisions are committed: as many scores again wait for that."""
_START_S = 60.0
_STOP_S = 10.0
_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('mlserve bench', 0))"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreService:
    port: int
    world: ScoreWorld
    database_url: str
    environment: Mapping[str, str]
    """Of a process that is to use the service's databases."""

    def transaction(self, name: str, number: int) -> dict[str, Any]:
        """Of now. Numbers walk through the pairs of customer and merchant; each is a transaction of its own."""
        customer, merchant = self.world.pairs[number % len(self.world.pairs)]
        return {
            "transaction_id": f"{name}-{number}",
            "occurred_at": datetime.now(UTC),
            "customer_id": customer,
            "merchant_id": merchant,
            "amount": 20.0,
            "currency": "EUR",
        }

    def post(self, path: str, body: Any) -> bytes:
        """The bytes of a request with the service's key."""
        return post(path=path, host=HOST, key=self.world.key, body=msgspec.json.encode(body))


@contextmanager
def score_service(progress: Progress) -> Iterator[ScoreService]:
    """A running service that can score. Raises BenchmarkFailed, also if another process measures on these servers."""
    with filled(progress) as (environment, world):
        progress("start the web process", 0.0)
        with _web(environment, Path(environment["MLSERVE_VAR_DIR"]) / "web.log") as port:
            yield ScoreService(
                port=port, world=world, database_url=environment["DATABASE_URL"], environment=environment
            )


@contextmanager
def filled(progress: Progress) -> Iterator[tuple[Mapping[str, str], ScoreWorld]]:
    """All of it but the web process: the environment of one that could score, with a relay. Raises BenchmarkFailed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlserve-bench-")))
        environment = env.child_environment(
            DJANGO_SETTINGS_MODULE="benchmarks.server_settings",
            DATABASE_URL=stack.enter_context(_own_database()),
            REDIS_CACHE_URL=stack.enter_context(_own_redis_database()),
            MLSERVE_VAR_DIR=str(folder),
            PROMETHEUS_MULTIPROC_DIR=str(folder / "metrics"),
            PYTHONPATH=str(env.BASE_DIR),
        )
        world = _fill(environment, folder / "prepare.log", progress)
        stack.enter_context(_relay(environment, folder / "relay.log"))
        yield environment, world


@contextmanager
def _own_database() -> Iterator[str]:
    """Its URL. What a killed run has left is dropped first."""
    parts = urlsplit(env.DATABASE_URL)
    name = f"{parts.path.lstrip('/')}_bench"
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    try:
        with psycopg.connect(env.DATABASE_URL, autocommit=True) as connection:
            if connection.execute(_LOCK).fetchone() != (True,):
                raise BenchmarkFailed("score: another process measures on this PostgreSQL; wait until it is done")
            connection.execute(drop)
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            try:
                yield urlunsplit(parts._replace(path=f"/{name}"))
            finally:
                connection.execute(drop)
    except psycopg.Error as error:
        raise BenchmarkFailed(
            f"score: PostgreSQL does not answer or gives no database {name}: {str(error).strip()}; the user of "
            "DATABASE_URL needs the right to create databases"
        ) from error


@contextmanager
def _own_redis_database() -> Iterator[str]:
    """The URL of one that was empty, and is emptied again."""
    parts = urlsplit(env.REDIS_CACHE_URL)
    if parts.scheme not in ("redis", "rediss"):
        raise BenchmarkFailed(f"score: REDIS_CACHE_URL begins with {parts.scheme}:, needed is redis: or rediss:")
    try:
        for number in range(15, 0, -1):
            url = urlunsplit(parts._replace(path=f"/{number}"))
            with redis.Redis.from_url(url, socket_timeout=5) as client:
                if client.dbsize() == 0:
                    try:
                        yield url
                    finally:
                        client.flushdb()
                    return
    except redis.RedisError as error:
        raise BenchmarkFailed(f"score: Redis does not answer or refuses: {error}") from error
    raise BenchmarkFailed("score: none of the databases 1 to 15 of REDIS_CACHE_URL is empty")


def _fill(environment: Mapping[str, str], log: Path, progress: Progress) -> ScoreWorld:
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.score_world"], env=environment, stdout=subprocess.PIPE, stderr=errors
        ) as child,
    ):
        assert child.stdout is not None
        last = b"{}"
        try:
            for line in child.stdout:
                last = line
                stage = msgspec.json.decode(line).get("stage")
                if stage:
                    progress(f"prepare: {stage}", 0.0)
        finally:
            end(child)
    if child.returncode != 0:
        raise BenchmarkFailed(f"score: the data could not be prepared:\n{tail(log)}")
    return msgspec.json.decode(last, type=ScoreWorld)


@contextmanager
def _relay(environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Without one, nothing in memory would be vouched for."""
    command = [sys.executable, str(env.BASE_DIR / "manage.py"), "relay"]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT) as relay,
    ):
        try:
            _wait_until_it_vouches(relay, environment["REDIS_CACHE_URL"], log)
            yield
        finally:
            relay.terminate()
            end(relay)


def _wait_until_it_vouches(relay: "subprocess.Popen[bytes]", cache_url: str, log: Path) -> None:
    """What is filled before the first watermark is vouched for by nobody, ever."""
    deadline = time.monotonic() + _START_S
    with redis.Redis.from_url(cache_url, socket_timeout=5) as client:
        while relay.poll() is None and time.monotonic() < deadline:
            if client.exists(name_of(0)):
                return
            time.sleep(0.05)
    raise BenchmarkFailed(f"score: the relay does not begin:\n{tail(log)}")


@contextmanager
def _web(environment: Mapping[str, str], log: Path) -> Iterator[int]:
    """The port of one granian process, which answers."""
    port = free_port()
    command = f"-m granian --interface wsgi --host {HOST} --port {port} --workers 1 --http 1 --no-ws"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, *command.split(), "mlserve.wsgi:application"],
            env={**environment, "GRANIAN_BLOCKING_THREADS": str(_ALL_THREADS)},
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        try:
            _wait_until_it_answers(server, port, log)
            yield port
        finally:
            server.terminate()
            end(server)


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    raise BenchmarkFailed(f"score: the web process does not answer:\n{tail(log)}")


def end(child: "subprocess.Popen[bytes]") -> None:
    """Waits for a process that was told to go, and kills it if that takes too long."""
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def tail(log: Path) -> str:
    """The last lines."""
    return os.linesep.join(log.read_text("utf-8", "replace").splitlines()[-15:])
