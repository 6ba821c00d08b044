"""Scheduled builds. All are idempotent: a run that is lost or repeated costs time, never truth."""

from celery import shared_task
from django.utils import timezone

from features.definitions import (
    CUSTOMER_EMBEDDING,
    CUSTOMER_PROFILE,
    MERCHANT_EMBEDDING,
    MERCHANT_PROFILE,
    MERCHANT_RISK,
)
from features.refresh import build


@shared_task(name="features.rebuild_merchant_risk", ignore_result=True, soft_time_limit=300, time_limit=330)
def rebuild_merchant_risk() -> None:
    now = timezone.now()
    build([MERCHANT_RISK.name], as_of=now, now=now)


@shared_task(name="features.rebuild_profiles", ignore_result=True, soft_time_limit=540, time_limit=600)
def rebuild_profiles() -> None:
    now = timezone.now()
    build([CUSTOMER_PROFILE.name, MERCHANT_PROFILE.name], as_of=now, now=now)


@shared_task(name="features.build_embeddings", ignore_result=True, soft_time_limit=540, time_limit=600)
def build_embeddings() -> None:
    now = timezone.now()
    build([CUSTOMER_EMBEDDING.name, MERCHANT_EMBEDDING.name], as_of=now, now=now)
