"""The Celery application: `celery -A mlserve.celery worker`."""

from importlib import import_module

from celery import Celery
from celery.signals import beat_init, setup_logging, worker_init, worker_process_init, worker_process_shutdown

from mlserve import embedded
from mlserve.postgres.sessions import Kind, usual_kind

# Before anything that counts: prometheus-client looks for the shared folder when it is first imported.
embedded.prepare_process()
multiprocess = import_module("prometheus_client.multiprocess")
app = Celery("mlserve")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
@worker_process_init.connect
def _ask_as_a_worker(**_: object) -> None:
    usual_kind(Kind.WORKER)


@beat_init.connect
def _ask_as_the_schedule(**_: object) -> None:
    """Its questions are small, and a schedule that waits for ever for one is none."""
    usual_kind(Kind.BACKGROUND)


@setup_logging.connect
def _keep_the_projects_logging(**_: object) -> None:
    """Celery leaves logging alone once this signal has a receiver."""


@worker_process_shutdown.connect
def _leave_the_metrics(pid: int, **_: object) -> None:
    """A pool process that ended has no live gauges any more; its counters stay."""
    multiprocess.mark_process_dead(pid)
