"""How long a thread waits for an answer of Postgres.

A server that is frozen, or cut off without a word, keeps its connections open and never answers, and libpq would wait
for ever. Where somebody waits for the result, `answer_within` sets a limit: the connection is then given up, because
nobody knows what still travels on it, and Django's OperationalError is raised. Without it (commands, the admin,
workers' long builds) there is no limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
from psycopg import errors

from mlserve.postgres.failures import AnswerTimeout

_limit_s: ContextVar[float | None] = ContextVar("postgres_answer_limit_s", default=None)


@contextmanager
def answer_within(seconds: float) -> Iterator[None]:
    """Each statement of this thread must be answered within `seconds`. Nested limits: the innermost counts."""
    token = _limit_s.set(seconds)
    try:
        yield
    finally:
        _limit_s.reset(token)


class BoundedConnection(psycopg.Connection[Any]):
    """The pool's connection class: as psycopg's, but it keeps to `answer_within`."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        limit_s = _limit_s.get()
        if limit_s is None or timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, limit_s)
        except errors._WaitTimeout as error:
            self.pgconn.finish()
            raise AnswerTimeout(f"Postgres did not answer within {limit_s:g} s") from error
