"""Scheduled builds and flushes. All are idempotent: a run that is lost or repeated costs time, never truth."""

import structlog
from celery import shared_task
from django.utils import timezone

from features.catch_up import catch_up as catch_up_with_ledger
from features.catch_up import overdue_embeddings
from features.definitions import (
    CUSTOMER_EMBEDDING,
    CUSTOMER_PROFILE,
    MERCHANT_EMBEDDING,
    MERCHANT_PROFILE,
    MERCHANT_RISK,
)
from features.existence import build as build_filters
from features.flush import flush_write_behind as flush
from features.inspection.run import inspect
from features.journal_partitions import keep_up
from features.refresh import build_alone
from mlserve.cache.bloom_redis import StoreUnreachable
from mlserve.cache.clock import SystemClock
from mlserve.postgres.one_at_a_time import AlreadyRunning

MOST_S_OF_CATCHING_UP = 15.0
"""The queue has other work; what is left is taken up by the next run."""
WAIT_FOR_BUILD_S = 200.0
"""For a build that somebody else has begun; below the tasks' limits, with time to build left."""
_log = structlog.get_logger(__name__)


def _build(*groups: str) -> None:
    try:
        build_alone(groups, now=timezone.now(), wait_s=WAIT_FOR_BUILD_S)
    except AlreadyRunning as error:
        _log.warning("build_left_out", groups=groups, why=error.detail)


@shared_task(name="features.rebuild_merchant_risk", ignore_result=True, soft_time_limit=300, time_limit=330)
def rebuild_merchant_risk() -> None:
    _build(MERCHANT_RISK.name)


@shared_task(name="features.rebuild_profiles", ignore_result=True, soft_time_limit=540, time_limit=600)
def rebuild_profiles() -> None:
    _build(CUSTOMER_PROFILE.name, MERCHANT_PROFILE.name)


@shared_task(name="features.build_embeddings", ignore_result=True, soft_time_limit=540, time_limit=600)
def build_embeddings() -> None:
    _build(CUSTOMER_EMBEDDING.name, MERCHANT_EMBEDDING.name)


@shared_task(name="features.catch_up", ignore_result=True, max_retries=0, soft_time_limit=45, time_limit=55)
def catch_up() -> None:
    catch_up_with_ledger(now=timezone.now(), most_s=MOST_S_OF_CATCHING_UP)


@shared_task(name="features.rebuild_outdated_embeddings", ignore_result=True, soft_time_limit=540, time_limit=600)
def rebuild_outdated_embeddings() -> None:
    if overdue_embeddings(now=timezone.now()):
        build_embeddings()


@shared_task(name="features.flush_write_behind", ignore_result=True, max_retries=0, soft_time_limit=20, time_limit=30)
def flush_write_behind() -> None:
    flush(now=timezone.now())


@shared_task(name="features.build_bloom_filters", ignore_result=True, soft_time_limit=240, time_limit=270)
def build_bloom_filters() -> None:
    """What serves goes on serving where Redis takes none; the next run builds anew."""
    try:
        build_filters(clock=SystemClock())
    except StoreUnreachable as error:
        _log.warning("filters_not_built", why=str(error))


@shared_task(name="features.inspect_cache", ignore_result=True, max_retries=0, soft_time_limit=40, time_limit=50)
def inspect_cache() -> None:
    inspect(now=timezone.now())


@shared_task(name="features.keep_journal", ignore_result=True, max_retries=0, soft_time_limit=60, time_limit=90)
def keep_journal() -> None:
    keep_up(now=timezone.now())
