"""The Celery application: `celery -A mlserve.celery worker`."""

from importlib import import_module

from celery import Celery
from celery.signals import setup_logging, worker_process_shutdown

from mlserve import embedded

# Before anything that counts: prometheus-client looks for the shared folder when it is first imported.
embedded.prepare_process()
multiprocess = import_module("prometheus_client.multiprocess")
app = Celery("mlserve")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def _keep_the_projects_logging(**_: object) -> None:
    """Celery leaves logging alone once this signal has a receiver."""


@worker_process_shutdown.connect
def _leave_the_metrics(pid: int, **_: object) -> None:
    """A pool process that ended has no live gauges any more; its counters stay."""
    multiprocess.mark_process_dead(pid)
