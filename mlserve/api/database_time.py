"""How long a request may wait for PostgreSQL: for each statement as its kind of session says, and for all together.

A bound for each statement alone lets a page of ten queries hang for ten times as long.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from django import db

from mlserve.postgres.failures import AnswerTimeout
from mlserve.postgres.sessions import Kind, answer_within, session_of


@contextmanager
def database_within(altogether_s: float, *, kind: Kind) -> Iterator[None]:
    """Sessions of that kind; Django's OperationalError for a statement that has not ended when `altogether_s` are over.

    Getting a connection comes on top, once: the pool has a limit of its own.
    """
    ends_at = monotonic() + altogether_s

    def execute(execute: Callable[..., Any], *statement: Any) -> Any:
        left_s = ends_at - monotonic()
        if left_s <= 0:
            raise db.OperationalError("no time is left") from AnswerTimeout(
                f"PostgreSQL was waited for during {altogether_s:g} s by one request"
            )
        with answer_within(left_s):
            return execute(*statement)

    with session_of(kind), db.connection.execute_wrapper(execute):
        yield
