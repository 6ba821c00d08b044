import pytest
from celery import current_app
from django.conf import settings

from mlserve.console.figures import STREAM, broker_client
from mlserve.observability import metrics
from tests.fixtures.population import World
from warmup import tasks

OURS = ("warmup.warm_most_active", "warmup.refresh_hot_keys", "warmup.record_cache_figures")


@pytest.mark.parametrize("task", [tasks.warm_most_active, tasks.refresh_hot_keys])
@pytest.mark.parametrize("limit", [float("nan"), "many", -5, 10**15, {"a": 1}])
def test_a_wrong_argument_fails_clearly_and_is_not_tried_again(task, limit) -> None:
    """Nothing is gained by a second try."""
    result = task.apply(kwargs={"limit": limit})
    assert isinstance(result.result, ValueError)
    assert "limit" in str(result.result)
    assert result.state == "FAILURE"


def test_every_scheduled_task_exists_and_expires_with_its_interval() -> None:
    """A worker that was away does not find a heap of messages."""
    current_app.loader.import_default_modules()
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        assert entry["task"] in current_app.tasks
        assert entry["options"]["expire_seconds"] >= 5
        if isinstance(entry["schedule"], float):
            assert entry["options"]["expire_seconds"] == entry["schedule"]


def test_builds_wait_in_another_queue_than_refreshes() -> None:
    """Each queue has a worker of its own, so a build of minutes delays no refresh."""
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        route = current_app.amqp.router.route({}, entry["task"])
        is_quick = entry["task"].startswith("warmup.") or entry["task"] in (
            "features.flush_write_behind",
            "features.inspect_cache",
            "features.catch_up",
        )
        assert route["queue"].name == ("refresh" if is_quick else "build")


@pytest.mark.parametrize("name", OURS)
def test_tasks_state_their_limits(name: str) -> None:
    """A task that hangs is ended; its next run is its retry."""
    current_app.loader.import_default_modules()
    task = current_app.tasks[name]
    assert 0 < (task.soft_time_limit or 0) < (task.time_limit or 0) <= 600
    assert task.max_retries == 0
    assert task.ignore_result


def test_warmed_keys_are_counted_by_source(world: World) -> None:
    """`mlserve_warmed_keys_total`."""
    before = metrics.WARMED_KEYS.labels("most_active")._value.get()
    tasks.warm_most_active.apply(kwargs={"limit": 4}, throw=True)
    assert metrics.WARMED_KEYS.labels("most_active")._value.get() - before == 8 * 3


def test_recording_figures_adds_a_snapshot_to_the_series(world: World) -> None:
    """On the broker, where the console reads it."""
    with broker_client() as client:
        before = client.xlen(STREAM)
        tasks.record_cache_figures.apply(throw=True)
        assert client.xlen(STREAM) == before + 1
