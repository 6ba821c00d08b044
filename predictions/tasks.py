"""What beat has done with decisions."""

import structlog
from celery import shared_task
from django.utils import timezone

from predictions.skew import check_skew, differing_features

_log = structlog.get_logger(__name__)


@shared_task(
    name="predictions.check_training_serving_skew",
    ignore_result=True,
    max_retries=0,
    soft_time_limit=540,
    time_limit=600,
)
def check_training_serving_skew() -> None:
    report = check_skew(now=timezone.now())
    if report.differing:
        _log.error("training_serving_skew", values=report.differing, features=differing_features(report.features))
