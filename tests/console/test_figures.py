"""Snapshots: taken, kept for an hour, read back."""

import time

import pytest
from redis import Redis
from redis.exceptions import RedisError

from mlserve.console.figures import (
    SNAPSHOTS_KEPT,
    STREAM,
    Figures,
    L2Figures,
    broker_client,
    collect_figures,
    read_series,
    record_figures,
)
from mlserve.console.samples import BreakerState
from tests.console.metric_files import MetricFiles
from tests.fixtures.servers import ServerHandle

_T = 1_700_000_000.0


def _figures(at: float) -> Figures:
    return Figures(
        at=at,
        counters={("mlserve_cache_hits_total", "l1", "merchant_risk"): at},
        breakers=(BreakerState("l2", 7, 0.5),),
        l1_entries=1,
        l1_bytes=2,
        l2=L2Figures(reachable=True, server="Valkey 9", used_bytes=3),
    )


def test_a_snapshot_comes_back_as_it_was(series: Redis) -> None:
    """Keys with their labels, breakers and all."""
    record_figures(series, _figures(_T))
    assert read_series(series, since=_T) == [_figures(_T)]


def test_the_series_is_read_in_steps(series: Redis) -> None:
    """At least so far apart, and the newest is always there."""
    for step in range(8):
        record_figures(series, _figures(_T + 10 * step))
    chosen = read_series(series, since=_T + 10, step_s=30)
    assert [figures.at - _T for figures in chosen] == [10, 40, 70]
    assert [figures.at - _T for figures in read_series(series, since=_T + 20, step_s=30)] == [20, 50, 70]


def test_the_series_keeps_an_hour(series: Redis) -> None:
    """Valkey drops old entries in blocks of a hundred, so a little more may lie there."""
    for step in range(SNAPSHOTS_KEPT + 250):
        record_figures(series, _figures(_T + 10 * step))
    assert SNAPSHOTS_KEPT <= series.xlen(STREAM) <= SNAPSHOTS_KEPT + 100


def test_a_clock_set_back_starts_the_series_anew(series: Redis) -> None:
    """Otherwise nothing could be recorded until the wrong time has come."""
    record_figures(series, _figures(_T + 1_000_000))
    record_figures(series, _figures(_T))
    assert read_series(series, since=0) == [_figures(_T)]


def test_what_cannot_be_decoded_is_left_out(series: Redis) -> None:
    """An older version of the code, or somebody else, wrote it."""
    series.xadd(STREAM, {"figures": b"\xc1not msgpack"}, id=f"{int(_T * 1000)}-*")
    series.xadd(STREAM, {"other": b"1"}, id=f"{int(_T * 1000)}-*")
    record_figures(series, _figures(_T + 1))
    assert read_series(series, since=0) == [_figures(_T + 1)]


def test_figures_hold_the_files_and_the_cache_server(files: MetricFiles) -> None:
    """Valkey goes by its own version, not by the one of Redis that it is compatible with."""
    files.gauge("mlserve_l1_entries", 12.0, mode="livesum")
    figures = collect_figures(_T)
    assert (figures.at, figures.l1_entries) == (_T, 12)
    assert figures.l2.reachable
    assert figures.l2.server.startswith("Valkey ")
    assert figures.l2.used_bytes > 0


@pytest.mark.usefixtures("metrics_dir")
@pytest.mark.quiet
def test_a_cache_that_is_away_is_said_to_be(valkey_cache: ServerHandle) -> None:
    """Killed or frozen, within a fraction of a second; no exception."""
    valkey_cache.kill()
    killed = collect_figures(_T).l2
    assert (killed.reachable, bool(killed.error)) == (False, True)
    valkey_cache.start()
    valkey_cache.freeze()
    began = time.monotonic()
    assert not collect_figures(_T).l2.reachable
    assert time.monotonic() - began < 1.0


@pytest.mark.quiet
def test_a_broker_that_is_frozen_costs_half_a_second(valkey_broker: ServerHandle) -> None:
    """The task that records hears of it by an exception of redis-py."""
    valkey_broker.freeze()
    client = broker_client()
    began = time.monotonic()
    with pytest.raises(RedisError):
        record_figures(client, _figures(_T))
    assert time.monotonic() - began < 1.5
    client.close()
