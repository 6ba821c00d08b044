"""What goes wrong with the cache's and the broker's Valkey. None of it may cost a score, or make one stale."""

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import redis

from mlserve.servers.process import send
from mlserve.servers.valkey import ValkeyServer
from tests.torture.bad_day.fault import Day, Fault
from tests.torture.bad_day.testbed import Testbed

_OPERATOR: Final = "bad-day"
_OPERATORS_PASSWORD: Final = "the-operator-of-a-bad-day"
_EVERY_S: Final = 0.25
_DEAD_PORT: Final = 1


def faults() -> list[Fault]:
    return [
        Fault(name="valkey out of memory", play=_run_out_of_memory),
        Fault(name="valkey read-only", play=_make_replica),
        Fault(name="valkey loading", play=_load, extra_s=1.0),
        Fault(name="valkey without scripts", play=partial(_again_and_again, command=("SCRIPT", "FLUSH"))),
        Fault(name="valkey flushed", play=partial(_again_and_again, command=("FLUSHALL",))),
        Fault(name="valkey password changed", play=_change_password),
        Fault(name="valkey permissions taken", play=_take_permissions),
        Fault(name="valkey full", play=_take_connections),
        Fault(name="valkey frozen", play=partial(_freeze, name="cache")),
        Fault(name="valkey killed", play=partial(_kill, name="cache")),
        Fault(name="broker frozen", play=partial(_freeze, name="broker")),
        Fault(name="broker killed", play=partial(_kill, name="broker")),
    ]


def _run_out_of_memory(day: Day, lasts_s: float) -> None:
    with _operator(day.bed) as valkey:
        before = valkey.config_get("maxmemory*")
        valkey.config_set("maxmemory", "1mb", "maxmemory-policy", "noeviction")
        try:
            day.bed.pause(lasts_s)
        finally:
            valkey.config_set("maxmemory", before["maxmemory"], "maxmemory-policy", before["maxmemory-policy"])


def _make_replica(day: Day, lasts_s: float) -> None:
    """Of a server that nobody ever reaches: it keeps what it has and takes no writes."""
    with _operator(day.bed) as valkey:
        valkey.replicaof("127.0.0.1", _DEAD_PORT)
        try:
            day.bed.pause(lasts_s)
        finally:
            valkey.replicaof("NO", "ONE")


def _load(day: Day, lasts_s: float) -> None:
    """It comes back slowly and with what it had some seconds before: copies that were out of date then live again."""
    bed = day.bed
    with _operator(bed) as valkey:
        valkey.save()
        keys = max(1, valkey.dbsize())
    bed.pause(1.0)
    bed.cache_settings |= {
        "key-load-delay": str(round(lasts_s * 1_000_000 / keys)),
        "loading-process-events-interval-bytes": "1024",
    }
    try:
        bed.cache.kill()
        bed.cache.ensure()
        with _operator(bed) as valkey:
            valkey.config_set("key-load-delay", "0")
    finally:
        for name in ("key-load-delay", "loading-process-events-interval-bytes"):
            bed.cache_settings.pop(name, None)
        (bed.cache.data / "dump.rdb").unlink(missing_ok=True)


def _again_and_again(day: Day, lasts_s: float, *, command: tuple[str, ...]) -> None:
    with _operator(day.bed) as valkey:
        for _ in range(max(1, round(lasts_s / _EVERY_S))):
            valkey.execute_command(*command)
            day.bed.pause(_EVERY_S)


def _change_password(day: Day, lasts_s: float) -> None:
    record = day.bed.cache.record
    assert record is not None
    with _operator(day.bed) as valkey:
        valkey.config_set("requirepass", "another-password")
        _drop_clients(valkey)
        try:
            day.bed.pause(lasts_s)
        finally:
            valkey.config_set("requirepass", record.password)


def _take_permissions(day: Day, lasts_s: float) -> None:
    """Of everybody but the operator: no scripts, no writes."""
    with _operator(day.bed) as valkey:
        valkey.execute_command("ACL", "SETUSER", "default", "-@scripting", "-@write")
        try:
            day.bed.pause(lasts_s)
        finally:
            valkey.execute_command("ACL", "SETUSER", "default", "+@all")


def _take_connections(day: Day, lasts_s: float) -> None:
    with _operator(day.bed) as valkey:
        before = valkey.config_get("maxclients")["maxclients"]
        valkey.config_set("maxclients", "1")
        _drop_clients(valkey)
        try:
            day.bed.pause(lasts_s)
        finally:
            valkey.config_set("maxclients", before)


def _freeze(day: Day, lasts_s: float, *, name: str) -> None:
    frozen = _server(day.bed, name).pids()
    send(frozen, signal.SIGSTOP)
    try:
        day.bed.pause(lasts_s)
    finally:
        send(frozen, signal.SIGCONT)


def _kill(day: Day, lasts_s: float, *, name: str) -> None:
    server = _server(day.bed, name)
    server.kill()
    try:
        day.bed.pause(lasts_s)
    finally:
        server.ensure()


def _server(bed: Testbed, name: str) -> ValkeyServer:
    return {"cache": bed.cache, "broker": bed.broker}[name]


def _drop_clients(valkey: Any) -> None:
    for kind in ("normal", "pubsub"):
        with contextlib.suppress(redis.ResponseError):
            valkey.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


@contextmanager
def _operator(bed: Testbed) -> Iterator[Any]:
    """A client with a name and a password of its own on one connection, whom no fault touches."""
    url = bed.cache.url
    assert url is not None
    with contextlib.closing(bed.valkey(url)) as default:
        default.execute_command("ACL", "SETUSER", _OPERATOR, "on", f">{_OPERATORS_PASSWORD}", "~*", "&*", "+@all")
    port = url.rpartition(":")[2].partition("/")[0]
    client = redis.Redis(
        "127.0.0.1",
        int(port),
        username=_OPERATOR,
        password=_OPERATORS_PASSWORD,
        decode_responses=True,
        socket_timeout=10,
        single_connection_client=True,
    )
    with contextlib.closing(client):
        yield client
