"""The processes of the demo, as commands that anybody could type."""

import sys
from pathlib import Path

from django.conf import settings

from mlserve.settings.env import child_environment
from warmup.demo.children import Recipe
from warmup.demo.place import HOST

WEB_WORKERS = 2
"""So that what one process caches, another has to learn: as in production."""
WEB_THREADS = 26
"""Per worker: for four scores that are worked on, eight that wait, and all else (`mlserve/api/admission.py`)."""
WEB_BACKLOG, WEB_CONNECTIONS = 1024, 512
"""Connections that wait to be accepted, and those that each worker accepts: their number is no measure of load, since
most that are kept are idle, and a health check that is not accepted looks like a dead process."""
WEB_HEAD_MS = 10_000
"""For a request's head to come, and for the next one on a kept connection."""
_WORKER_BUDGET_MS = 500
"""Nobody waits for a Celery worker or the relay: they give L2 more time to answer than a request does."""
_WEB_STOP_S = 2
"""A request takes milliseconds. A granian worker that is told to stop while it loads the application never heeds it."""

_PYTHON = sys.executable
_MANAGE = str(Path(settings.BASE_DIR) / "manage.py")


def web(*, port: int) -> Recipe:
    command = f"-m granian --interface wsgi --host {HOST} --port {port} --workers {WEB_WORKERS}"
    return Recipe(
        name="web",
        argv=[
            *(_PYTHON, *command.split()),
            *("--http", "1", "--http1-header-read-timeout", str(WEB_HEAD_MS)),
            *("--backlog", str(WEB_BACKLOG), "--backpressure", str(WEB_CONNECTIONS), "--no-ws"),
            "--respawn-failed-workers",
            *("--workers-kill-timeout", str(_WEB_STOP_S)),
            "mlserve.wsgi:application",
        ],
        environment=_environment(GRANIAN_BLOCKING_THREADS=str(WEB_THREADS)),
        essential=True,
    )


def relay() -> Recipe:
    """One: the demo starts it again if it dies, and until then values are read from PostgreSQL. Production runs two."""
    environment = _environment(MLSERVE_CACHE_BUDGET_MS=str(_WORKER_BUDGET_MS))
    return Recipe(name="relay", argv=[_PYTHON, _MANAGE, "relay"], environment=environment)


def workers_and_beat() -> list[Recipe]:
    return [
        _celery("worker-refresh", "worker", "--queues", "refresh", "--concurrency", "2", "--hostname", "refresh@%h"),
        _celery("worker-build", "worker", "--queues", "build", "--concurrency", "1", "--hostname", "build@%h"),
        _celery("beat", "beat", "--pidfile", ""),
    ]


def live_traffic(*, port: int, api_key: str, per_second: float) -> Recipe:
    return Recipe(
        name="live-traffic",
        argv=[_PYTHON, _MANAGE, "live_traffic", "--url", f"http://{HOST}:{port}", "--rate", str(per_second)],
        environment=_environment(MLSERVE_API_KEY=api_key),
    )


def _celery(name: str, kind: str, *options: str) -> Recipe:
    environment = _environment(MLSERVE_DB_POOL_MAX_SIZE="0", MLSERVE_CACHE_BUDGET_MS=str(_WORKER_BUDGET_MS))
    argv = [_PYTHON, "-m", "celery", "--app", "mlserve.celery", "--workdir", str(settings.BASE_DIR), kind, *options]
    return Recipe(name=name, argv=argv, environment=environment)


def _environment(**changes: str) -> dict[str, str]:
    return child_environment(
        PYTHONPATH=str(settings.BASE_DIR), PYTHONUNBUFFERED="1", **{"MLSERVE_API_KEY": "", **changes}
    )
