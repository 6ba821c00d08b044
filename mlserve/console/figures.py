"""One snapshot of everything that the console shows, and the last hour of them.

Snapshots lie in a stream on the broker Redis, which does not evict; losing them loses a chart, nothing else.
Whoever wants a rate takes two snapshots and subtracts (`window.py`).
"""

from collections.abc import Iterator
from typing import cast

import msgspec
from django.conf import settings
from django_redis import get_redis_connection
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from mlserve.console.samples import BreakerState, CounterKey, Unconfirmed, read_samples

STREAM = "mlserve:figures"
SNAPSHOT_EVERY_S = 10
SNAPSHOTS_KEPT = 360
"""One hour of them."""
MAX_READ = 2 * SNAPSHOTS_KEPT
"""Redis keeps some more than it is told."""
_BROKER_TIMEOUT_S = 0.5
"""A page for people may wait this long for a server that hangs."""


class L2Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache server says of itself. Without `reachable`, `error` says why and the rest is zero."""

    reachable: bool
    error: str = ""
    server: str = ""
    used_bytes: int = 0
    max_bytes: int = 0
    """0 means without limit."""
    eviction_policy: str = ""
    evicted_keys: int = 0
    keys: int = 0
    clients: int = 0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's totals over all processes of this host. `at` is in seconds since 1970; counters only ever grow."""

    at: float
    counters: dict[CounterKey, float]
    breakers: tuple[BreakerState, ...]
    l1_entries: int
    l1_bytes: int
    l2: L2Figures
    unconfirmed: tuple[Unconfirmed, ...] = ()


_Entries = list[tuple[bytes, dict[bytes, bytes]]]
"""Of a client that does not decode responses."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Figures)


def collect_figures(now: float) -> Figures:
    """Reads the metric files and asks the cache server. Never raises for a server that is away."""
    samples = read_samples(settings.METRICS_DIR)
    return Figures(
        at=now,
        counters=samples.counters,
        breakers=samples.breakers,
        unconfirmed=samples.unconfirmed,
        l1_entries=samples.l1_entries,
        l1_bytes=samples.l1_bytes,
        l2=_ask_l2(),
    )


def broker_client() -> Redis:
    """A connection of its own to the broker Redis, for the series. Close it."""
    return Redis.from_url(
        settings.REDIS_BROKER_URL,
        socket_timeout=_BROKER_TIMEOUT_S,
        socket_connect_timeout=_BROKER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def record_figures(broker_client: Redis, figures: Figures) -> None:
    """Appends a snapshot to the series, which keeps the newest hour. Raises `RedisError` if the broker is away.

    A snapshot older than the newest one means that the clock was set back: the series starts anew.
    """
    try:
        _append(broker_client, figures)
    except ResponseError:
        broker_client.unlink(STREAM)
        _append(broker_client, figures)


def read_series(broker_client: Redis, *, since: float, step_s: float = 0.0) -> list[Figures]:
    """The snapshots taken at or after `since` (seconds since 1970), oldest first, at least `step_s` apart.

    The newest is always among them. Raises `RedisError` if the broker is away; skips what it cannot decode.
    """
    # From its end: whatever else has come into the stream, a page asks for no more than an hour has.
    newest = broker_client.xrevrange(STREAM, min=int(since * 1000), count=MAX_READ)
    entries = cast("_Entries", newest or [])[::-1]
    chosen: list[Figures] = []
    for position, (entry_id, fields) in enumerate(entries):
        taken_at = int(entry_id.partition(b"-")[0]) / 1000
        if chosen and position < len(entries) - 1 and taken_at - chosen[-1].at < step_s:
            continue
        chosen.extend(_decoded(fields))
    return chosen


def _append(broker_client: Redis, figures: Figures) -> None:
    broker_client.xadd(
        STREAM,
        {"figures": _encoder.encode(figures)},
        id=f"{int(figures.at * 1000)}-*",
        maxlen=SNAPSHOTS_KEPT,
        approximate=True,
    )


def _decoded(fields: dict[bytes, bytes]) -> Iterator[Figures]:
    try:
        yield _decoder.decode(fields[b"figures"])
    except (KeyError, msgspec.DecodeError):
        return


def _ask_l2() -> L2Figures:
    try:
        client = get_redis_connection("l2")
        info, keys = client.pipeline(transaction=False).info().dbsize().execute()
    except (RedisError, OSError) as error:
        return L2Figures(reachable=False, error=str(error) or type(error).__name__)
    return L2Figures(
        reachable=True,
        server=_server_name(info),
        used_bytes=int(info.get("used_memory", 0)),
        max_bytes=int(info.get("maxmemory", 0)),
        eviction_policy=str(info.get("maxmemory_policy", "")),
        evicted_keys=int(info.get("evicted_keys", 0)),
        keys=int(keys),
        clients=int(info.get("connected_clients", 0)),
    )


def _server_name(info: dict[str, object]) -> str:
    """Valkey also reports a `redis_version` that it is compatible with; its own is the one to show."""
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', '?')}"
