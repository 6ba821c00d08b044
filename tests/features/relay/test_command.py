"""`manage.py relay`: how it ends, what it says, and how soon it tells."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO

import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import connection

from mlserve.settings.base import BASE_DIR
from tests.features.relay.conftest import (
    copy_of,
    is_fresh,
    is_tombstone,
    keep_writing,
    make_relay,
    mark_in,
    wait_until_it_goes_on,
    write,
)
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until


def _command(*options: str) -> "subprocess.Popen[str]":
    known = connection.get_connection_params()
    url = f"postgresql://{known['user']}:{known['password']}@{known['host']}:{known['port']}/{known['dbname']}"
    return subprocess.Popen(
        [sys.executable, str(BASE_DIR / "manage.py"), "relay", *options],
        env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "mlserve.settings.test"},
        stdout=subprocess.PIPE,
        text=True,
    )


BUSY_S = 2.0
"""What a machine may add that does other things as well: the end of an interpreter with its threads is work too."""


@pytest.mark.parametrize("frozen", ["nobody", "cache", "postgres"])
@pytest.mark.quiet
def test_sigterm_ends_it_within_a_second(
    frozen: str, empty: redis.Redis, valkey_cache: ServerHandle, postgres: ServerHandle
) -> None:
    """Also while a server hangs; it says what it has done."""
    with _command("--tick-ms", "10", "--json") as process:
        wait_until_it_goes_on(empty)
        if frozen != "nobody":
            (valkey_cache if frozen == "cache" else postgres).freeze()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        took = time.monotonic() - began
        valkey_cache.thaw()
        postgres.thaw()
    assert process.returncode == 0
    assert took < 1.0 + BUSY_S
    assert json.loads(out)["steps"] > 0


def test_kill_9_leaves_a_watermark_that_is_true(empty: redis.Redis) -> None:
    """Another relay goes on from it; every commit of the time between is told."""
    with _command("--tick-ms", "10") as process:
        until(lambda: is_fresh(empty, 0), within_s=60)
        epoch = mark_in(empty).epoch
        stopped = threading.Event()
        committed: list[str] = []
        writer = threading.Thread(target=keep_writing, args=(1, stopped, committed, []))
        writer.start()
        until(lambda: len(committed) > 100)
        process.kill()
        process.wait()
    until(lambda: len(committed) > 200)
    stopped.set()
    writer.join()
    relay = make_relay()
    relay.tick()
    assert relay.tally.keys >= 100
    assert mark_in(empty).epoch == epoch
    assert [name for name in committed if copy_of(empty, name) is None] == []


def test_once_tells_what_was_committed_until_now(empty: redis.Redis) -> None:
    """And says what it did."""
    call_command("relay", "--once", stdout=StringIO())
    version = write("m1")
    out = StringIO()
    call_command("relay", "--once", "--json", stdout=out)
    assert is_tombstone(empty, "m1", version)
    said = json.loads(out.getvalue())
    assert (said["steps"], said["keys"], said["epochs_raised"]) == (1, 1, 0)
    assert 0 <= said["lag_s"] < 5


def test_once_fails_without_the_cache(empty: redis.Redis, valkey_cache: ServerHandle) -> None:
    """Exit code 1 and the partitions that were not told."""
    valkey_cache.kill()
    with pytest.raises(CommandError, match="cache does not take part"):
        call_command("relay", "--once", stdout=StringIO())


@pytest.mark.parametrize("tick", ["0", "10001"])
def test_a_wrong_tick_is_wrong_usage(tick: str) -> None:
    """Exit code 2."""
    with pytest.raises(CommandError) as refused:
        call_command("relay", "--tick-ms", tick)
    assert refused.value.returncode == 2


def test_the_lag_is_a_fraction_of_the_bound(empty: redis.Redis, record_property: Callable[[str, object], None]) -> None:
    """From the commit's acknowledgement to the tombstone, and the age of the watermark that readers see."""
    relay, stopped = make_relay(), threading.Event()
    thread = threading.Thread(target=relay.run, args=(stopped,))
    thread.start()
    until(lambda: is_fresh(empty, 0))
    lags, ages = [], []
    for number in range(60):
        version = write(f"m{number}")
        acknowledged = time.monotonic()
        while not is_tombstone(empty, f"m{number}", version):
            assert time.monotonic() - acknowledged < 5
        lags.append(time.monotonic() - acknowledged)
        ages.append(time.time() - mark_in(empty).safe_time)
        stopped.wait(random.uniform(0, 0.03))
    stopped.set()
    thread.join()
    lags.sort(), ages.sort()
    figures = {"lag p50": lags[30], "lag p99": lags[59], "age p50": ages[30], "age p99": ages[59]}
    record_property("relay_lag_ms", {name: round(value * 1000, 1) for name, value in figures.items()})
    print({name: f"{value * 1000:.1f} ms" for name, value in figures.items()})
    assert lags[30] < 0.5
