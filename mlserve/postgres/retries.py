"""Does a database transaction once more where somebody else held what it wanted.

PostgreSQL ends one of two transactions that wait for each other (40P01), one that saw what another has changed since
(40001), and one that has waited for a lock for too long (55P03). None of that is an outage, and the same again usually
goes well. For imports, builds and tasks, which nobody waits for; a request is answered instead, and its sender decides.
"""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
import structlog
from django.db import DatabaseError, connection

from mlserve.postgres.failures import Failure, failure_of, sqlstate_of

MAX_ATTEMPTS: Final = 5
FIRST_PAUSE_S: Final = 0.05
"""Doubled after each attempt, and drawn at random between half of it and all: two that met do not meet again."""
_log = structlog.get_logger(__name__)
T = TypeVar("T")


def retry_contention(work: Callable[[], T], *, what: str, sleep: Callable[[float], None] = time.sleep) -> T:
    """What `work`, one whole database transaction, returns. `what` names it in the log.

    Raises what it raises: at once if that is no contention or a transaction of the caller's is open, which nobody can
    take up again; else after `MAX_ATTEMPTS`.
    """
    pause_s = FIRST_PAUSE_S
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return work()
        except (DatabaseError, psycopg.Error) as error:
            if failure_of(error) is not Failure.CONTENTION or attempt == MAX_ATTEMPTS or connection.in_atomic_block:
                raise
            _log.info("database_contention", what=what, attempt=attempt, sqlstate=sqlstate_of(error))
        sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s *= 2
    raise AssertionError("unreachable")
