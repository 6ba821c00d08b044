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

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SECRETS = (
    (re.compile(r"mls_[A-Za-z0-9_-]{16,}"), "mls_[hidden]"),
    (re.compile(r"(?i)\bbearer\s+[^\s\"',}]+"), "Bearer [hidden]"),
    (re.compile(r"://([^:/@\s]*):[^@/\s]+@"), r"://\1:[hidden]@"),
)


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

    finish: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
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
