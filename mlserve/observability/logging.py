"""Where log lines go and how they look: structlog and the standard library through one handler to stderr.

Times are UTC. `format` is `console` for people or `json`, one object a line, for machines. Lines of the same request
carry its `request_id`. API keys and passwords in URLs are struck out of every finished line, whoever wrote it.
"""

import logging
import logging.config
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import django.db
import psycopg
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mlserve.postgres.failures import Failure, failure_of

_SECRETS = (
    (re.compile(r"mls_[A-Za-z0-9_-]{16,}"), "mls_[hidden]"),
    (re.compile(r"(?i)\bbearer\s+[^\s\"',}]+"), "Bearer [hidden]"),
    (re.compile(r"://([^:/@\s]*):[^@/\s]+@"), r"://\1:[hidden]@"),
)

_OUTAGES = frozenset(
    {
        ("redis.exceptions", "ConnectionError"),
        ("redis.exceptions", "TimeoutError"),
        ("kombu.exceptions", "OperationalError"),
    }
)
_OUTAGES_OF_POSTGRES = frozenset({Failure.UNAVAILABLE, Failure.TIMEOUT, Failure.READ_ONLY, Failure.CONTENTION})
"""Not the code's: nothing in it needs a look, so nobody needs its lines."""


def configure(config: Mapping[str, str]) -> None:
    """Django's `LOGGING_CONFIG`: takes `level` and `format`. Calling it again replaces what was set before."""
    level = logging.getLevelNamesMapping()[config["level"]]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    logging.config.dictConfig(_handlers(level=level, render=_renderer(config["format"]), shared=shared))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


def without_secrets(line: str) -> str:
    """The line with API keys, bearer tokens and passwords in URLs struck out."""
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    return line


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is now, not to what it was when logging was configured."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _value: TextIO) -> None:
        """There is nothing to set."""


def outage_in_one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A server that is away is no fault of the code: what it said, instead of the traceback.

    Celery's copy of a task's traceback goes in any case: the line has one already.
    """
    if isinstance(data := event.get("data"), Mapping) and "traceback" in data:
        del event["data"]
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException) and _is_outage(error):
        del event["exc_info"]
        event["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        event["event"] = " ".join(str(event["event"]).split())
    return event


def _is_outage(error: BaseException | None) -> bool:
    """Also if it is the cause of another error, which says what could not be done without the server."""
    while error is not None:
        if isinstance(error, django.db.Error | psycopg.Error):
            return failure_of(error) in _OUTAGES_OF_POSTGRES
        # By name: redis and Celery take their time to load, and most commands need neither.
        if any((kind.__module__, kind.__name__) in _OUTAGES for kind in type(error).__mro__):
            return True
        error = error.__cause__
    return False


class _OnlyTracebacks(logging.Filter):
    """Of what Django says about a request only its unforeseen exceptions: the request has a line of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.exc_info is not None


def _renderer(log_format: str) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer()
    # The plain traceback: the pretty one shows local variables, and with them keys and card data.
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _handlers(*, level: int, render: Processor, shared: list[Processor]) -> dict[str, Any]:
    def rendered_without_secrets(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return without_secrets(str(render(logger, method, event)))

    finish: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, outage_in_one_line]
    if isinstance(render, structlog.processors.JSONRenderer):
        finish.append(structlog.processors.format_exc_info)
    finish.append(rendered_without_secrets)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": shared,
                "processors": finish,
            }
        },
        "filters": {"tracebacks": {"()": _OnlyTracebacks}},
        "handlers": {"stderr": {"()": StderrHandler, "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "django": {"handlers": [], "level": "INFO", "propagate": True},
            "django.request": {"level": "ERROR", "filters": ["tracebacks"]},
            "django.security.DisallowedHost": {"level": "CRITICAL"},
            "django.server": {"handlers": [], "level": "WARNING", "propagate": True},
            "httpx": {"level": "WARNING"},
        },
    }
