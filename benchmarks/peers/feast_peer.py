"""Feast's HTTP feature server with the features that a score reads, in the same Valkey.

Set up as its guide for tuning has it: one feature view an entity, so that one pipeline reads all of it; a registry that
is read once and never again; no access log; uvloop, httptools and hiredis, which its own requirements bring. Workers
are not replaced after a thousand requests, which would cost it connections. No time to live, so no age is computed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from benchmarks.contest import BenchmarkFailed, Progress
from benchmarks.http_load import Connection, post
from benchmarks.peers.feature_list import FEATURES
from benchmarks.peers.server import in_requests, peer_environment, run_once, running, some_of
from benchmarks.peers.world import PeerWorld
from benchmarks.score_service import HOST, free_port

_PROJECT = "mlserve_bench"
_SAME_WITHIN = 1e-9
_PATIENCE_S = 180.0
_DEFINITIONS = """\
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

"""
_VIEW = """\
{entity} = Entity(name="{entity}", join_keys=["{entity}_id"], value_type=ValueType.STRING)
{entity}_features = FeatureView(
    name="{entity}_features",
    entities=[{entity}],
    ttl=timedelta(0),
    schema=[Field(name=name, dtype=Float64) for name in {names!r}],
    source=FileSource(name="{entity}_source", path="{entity}.parquet", timestamp_field="event_timestamp"),
)
"""
"""The source is never read: Feast takes no view without one, and the rows come by its API."""
_SERVE = "--no-access-log --workers 1 --max-requests 0 --max-requests-jitter 0 --registry_ttl_sec 0"


def definitions() -> str:
    """The feature repository's module: the very features of `feature_list.FEATURES`, a view for each entity."""
    return _DEFINITIONS + "".join(_VIEW.format(entity=entity, names=names) for entity, names in FEATURES.items())


def store_configuration(redis_url: str) -> str:
    """`feature_store.yaml`, as JSON, which is YAML. Raises BenchmarkFailed for a URL that Feast cannot express."""
    parts = urlsplit(redis_url)
    settings = {"db": parts.path.lstrip("/") or "0", "username": parts.username, "password": parts.password}
    said = [f"{name}={unquote(value)}" for name, value in settings.items() if value]
    if parts.scheme != "redis" or any("," in one for one in said):
        raise BenchmarkFailed("peers: Feast needs a REDIS_CACHE_URL of the form redis: without a comma in its password")
    return msgspec.json.encode(
        {
            "project": _PROJECT,
            "provider": "local",
            "registry": {"path": "registry.db", "cache_ttl_seconds": 0},
            "online_store": {
                "type": "redis",
                "connection_string": ",".join((f"{parts.hostname}:{parts.port or 6379}", *said)),
            },
            "offline_store": {"type": "file"},
            "entity_key_serialization_version": 3,
        }
    ).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Feast:
    """A running feature server. `pairs`: of customer and merchant, all that are scored."""

    port: int
    world: PeerWorld
    pairs: Sequence[tuple[str, str]]

    def requests(self, size: int) -> list[bytes]:
        """For all pairs in their order, `size` in each."""
        return [_request(pairs) for pairs in in_requests(self.pairs, size=size)]

    def check(self, size: int) -> None:
        """Raises BenchmarkFailed unless its answers have every pair and every feature, with the value that is ours."""
        with closing(Connection(HOST, self.port)) as connection:
            for pairs in some_of(in_requests(self.pairs, size=size)):
                rows = named_rows(connection.ask(_request(pairs)), rows=size)
                for (customer, merchant), found in zip(pairs, rows, strict=True):
                    self._compare(found, customer, merchant)

    def _compare(self, found: Mapping[str, Any], customer: str, merchant: str) -> None:
        expected = expected_of(self.world, customer, merchant)
        wrong = [name for name, value in expected.items() if not _same(found.get(name), value)]
        if wrong or len(found) != len(expected):
            raise BenchmarkFailed(
                f"peers: Feast answers {len(found)} of {len(expected)} features for {customer} and {merchant}, "
                f"and wrong ones: {', '.join(wrong) or 'none'}"
            )


def expected_of(world: PeerWorld, customer: str, merchant: str) -> dict[str, float]:
    """By name, of both entities together."""
    ids = {"customer": customer, "merchant": merchant}
    return {
        name: value
        for entity, names in FEATURES.items()
        for name, value in zip(names, world.features[entity][ids[entity]], strict=True)
    }


def named_rows(body: bytes, *, rows: int) -> list[dict[str, Any]]:
    """The features of one answer by pair, without the ids that Feast repeats; None where it knows nothing.

    Raises BenchmarkFailed unless each of them, and each id, has `rows` values.
    """
    answer = msgspec.json.decode(body)
    named = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    for name, column in named.items():
        if not len(column["values"]) == len(column["statuses"]) == rows:
            raise BenchmarkFailed(f"peers: Feast answers {len(column['values'])} values of {name} for {rows} pairs")
    features = {name: column for name, column in named.items() if name.removesuffix("_id") not in FEATURES}
    return [
        {
            name: column["values"][row] if column["statuses"][row] == "PRESENT" else None
            for name, column in features.items()
        }
        for row in range(rows)
    ]


def _same(found: Any, expected: float) -> bool:
    return isinstance(found, float | int) and abs(found - expected) <= _SAME_WITHIN * max(1.0, abs(expected))


@contextmanager
def feast_server(
    programs: Path,
    *,
    folder: Path,
    redis_url: str,
    world: PeerWorld,
    pairs: Sequence[tuple[str, str]],
    progress: Progress,
) -> Iterator[Feast]:
    """Serves the features of `world`. Raises BenchmarkFailed."""
    progress("start Feast", 0.0)
    (folder / "feature_store.yaml").write_text(store_configuration(redis_url), "utf-8")
    (folder / "definitions.py").write_text(definitions(), "utf-8")
    program, environment, port = str(programs / "feast"), peer_environment(folder), free_port()
    run_once("Feast", [program, "apply"], folder=folder, environment=environment, patience_s=_PATIENCE_S)
    command = [program, "serve", "--host", HOST, "--port", str(port), *_SERVE.split()]
    with running("Feast", command, folder=folder, environment=environment, port=port, ready="/health"):
        _fill(port, world)
        yield Feast(port=port, world=world, pairs=pairs)


def _fill(port: int, world: PeerWorld) -> None:
    with closing(Connection(HOST, port)) as connection:
        for entity, rows in world.features.items():
            columns = dict(zip(FEATURES[entity], zip(*rows.values(), strict=True), strict=True))
            frame = {f"{entity}_id": list(rows), "event_timestamp": [world.as_of] * len(rows), **columns}
            body = {"feature_view_name": f"{entity}_features", "df": frame}
            connection.ask(_post("/write-to-online-store", body))


def _request(pairs: Sequence[tuple[str, str]]) -> bytes:
    names = [f"{entity}_features:{name}" for entity, names in FEATURES.items() for name in names]
    customers, merchants = zip(*pairs, strict=True)
    entities = {"customer_id": customers, "merchant_id": merchants}
    return _post("/get-online-features", {"features": names, "entities": entities})


def _post(path: str, body: dict[str, Any]) -> bytes:
    return post(path=path, host=HOST, key="none", body=msgspec.json.encode(body))
