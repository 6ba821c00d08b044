"""Periodic tasks that keep the cache warm. All are idempotent: one that is lost or repeated costs time, never truth.

None is retried, its next run is its retry; queues are given by `CELERY_TASK_ROUTES`, and in the schedule each expires
with its interval, so that a worker that was away finds no heap of them.
"""

import msgspec
import structlog
from celery import shared_task
from django.utils import timezone

from mlserve.console import figures
from warmup import run

_log = structlog.get_logger(__name__)


@shared_task(name="warmup.warm_most_active", ignore_result=True, max_retries=0, soft_time_limit=240, time_limit=270)
def warm_most_active(*, limit: int = run.MOST_ACTIVE_LIMIT) -> None:
    report = run.warm_most_active(limit=limit, now=timezone.now())
    _log.info("warmed", **msgspec.to_builtins(report))


@shared_task(name="warmup.refresh_hot_keys", ignore_result=True, max_retries=0, soft_time_limit=30, time_limit=45)
def refresh_hot_keys(*, limit: int = run.HOT_LIMIT) -> None:
    report = run.refresh_hot_keys(limit=limit, now=timezone.now())
    _log.info("warmed", **msgspec.to_builtins(report))


@shared_task(name="warmup.record_cache_figures", ignore_result=True, max_retries=0, soft_time_limit=9, time_limit=15)
def record_cache_figures() -> None:
    with figures.broker_client() as client:
        figures.record_figures(client, figures.collect_figures(timezone.now().timestamp()))
