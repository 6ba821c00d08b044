"""Worker and beat as processes of their own, on the real broker."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis
from celery import current_app
from django.conf import settings

from features.policies import policies_in_force
from features.vectors import read_groups
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Degradation, Tier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from mlserve.console.figures import STREAM, broker_client
from mlserve.settings.env import child_environment
from tests.fixtures.population import World, database_url
from tests.fixtures.waiting import until
from warmup import tasks

CONNECTION_NAME = "worker-under-test"
PATIENCE_S = 60.0
FRESH_FOR_S = 4.0
"""Beat has hot keys renewed every second."""


@contextmanager
def _celery(log: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = child_environment(
        DATABASE_URL=database_url(),
        DJANGO_SETTINGS_MODULE="tests.fixtures.quick_schedule",
        MLSERVE_DB_POOL_MAX_SIZE="0",
        MLSERVE_CACHE_BUDGET_MS="1000",
        PYTHONPATH=str(settings.BASE_DIR),
        PGAPPNAME=CONNECTION_NAME,
    )
    argv = [sys.executable, "-m", "celery", "--app", "mlserve.celery", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=settings.BASE_DIR
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    """Emptied, so that no message of another test is waiting."""
    with broker_client() as client:
        client.flushdb()
        yield client


@pytest.fixture
def worker(world: World, broker: redis.Redis, tmp_path: Path) -> Iterator[Path]:
    """A worker of the refresh queue; yields its log."""
    log = tmp_path / "worker.log"
    with _celery(log, "worker", "--queues", "refresh", "--concurrency", "2", "--loglevel", "INFO"):
        yield log


def _until(condition, log: Path) -> None:
    until(condition, within_s=PATIENCE_S, tells=lambda: log.read_text("utf-8", "replace")[-4000:], pause_s=0.05)


def _copy(key: Key) -> Entry | None:
    found = engine().l2.peek_many([key], policies_in_force().policies)[key]
    return found if isinstance(found, Entry) else None


@pytest.mark.quiet
def test_a_hot_key_is_refreshed_before_it_expires_and_no_request_ever_misses(
    world: World, worker: Path, tmp_path: Path
) -> None:
    """Beat, broker and worker are real; the traffic alone makes the key hot."""
    key = Key("customer", world.customer, "customer_activity")
    world.edit_policy("customer_activity", fresh_for_s=FRESH_FOR_S)

    def look_up() -> tuple[Tier, frozenset[Degradation]]:
        reading = read_groups(
            {"customer_activity": key}, book=policies_in_force(), request=RequestTier(), budget=engine().budget()
        )
        return reading.outcomes[key].tier, frozenset(reading.degradations)

    with _celery(tmp_path / "beat.log", "beat", "--pidfile", "", "--loglevel", "INFO"):
        # The traffic begins before there is anybody to refresh; it counts from the first refresh on.
        _until(lambda: look_up() and "keys_put=1" in worker.read_text("utf-8", "replace"), worker)
        first = _copy(key)
        assert first is not None
        began, answers = time.monotonic(), []
        while time.monotonic() - began < 1.5 * FRESH_FOR_S:  # longer than a copy lives
            answers.append(look_up())
            time.sleep(0.05)
    # A busy machine may let L2 miss its 50 ms now and then; that is no key that had expired.
    in_time = [tier for tier, degradations in answers if Degradation.CACHE_UNAVAILABLE not in degradations]
    last = _copy(key)
    assert last is not None and last.as_of > first.as_of + FRESH_FOR_S
    assert len(in_time) > len(answers) / 2
    assert set(in_time) == {Tier.L2}, worker.read_text("utf-8", "replace")[-4000:]
    with broker_client() as client:
        assert client.xlen(STREAM) > 3, "beat also has the figures recorded"


def test_a_task_that_is_sent_arrives_and_its_pool_process_keeps_its_connection(world: World, worker: Path) -> None:
    """A hundred tasks do not make a hundred connections to Postgres."""
    for _ in range(100):
        tasks.warm_most_active.delay(limit=1)
    with psycopg.connect(database_url()) as watcher:
        watcher.autocommit = True
        backends: set[int] = set()

        def all_done() -> bool:
            rows = watcher.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
                (CONNECTION_NAME,),
            )
            backends.update(pid for (pid,) in rows)
            return worker.read_text("utf-8", "replace").count("succeeded in") == 100

        _until(all_done, worker)
        all_done()  # a connection that is kept is still there now
        # For each of the two pool processes one of the tasks' and one of each poller's; not one for each task.
        assert 1 <= len(backends) <= 8


def test_a_build_that_takes_long_does_not_delay_a_refresh(world: World, worker: Path, broker: redis.Redis) -> None:
    """Builds wait in a queue of their own, which this worker does not serve."""
    current_app.send_task("features.build_embeddings")
    tasks.refresh_hot_keys.delay(limit=5)
    _until(lambda: "warmup.refresh_hot_keys" in _succeeded(worker), worker)
    assert broker.llen("build") == 1
    assert json.loads(broker.lindex("build", 0) or b"{}")["headers"]["task"] == "features.build_embeddings"


def test_a_worker_is_ready_again_after_the_broker_was_away(world: World, worker: Path, valkey_broker) -> None:
    """Idle connections that broke are made anew."""
    _until(lambda: "ready" in worker.read_text("utf-8", "replace"), worker)
    valkey_broker.restart()
    tasks.refresh_hot_keys.delay(limit=3)
    _until(lambda: "warmup.refresh_hot_keys" in _succeeded(worker), worker)


def _succeeded(log: Path) -> str:
    return "\n".join(line for line in log.read_text("utf-8", "replace").splitlines() if "succeeded in" in line)
