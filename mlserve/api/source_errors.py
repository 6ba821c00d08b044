"""What an error of PostgreSQL is to whoever asked over HTTP: the one table for the API and for pages.

`failure_of` says what an error means; here stands what is answered. What no other try would mend, because these values
are refused or the schema is another one, is no matter of coming back later: 500, and the log has it.
"""

from random import randrange
from typing import Final

import msgspec
import psycopg
from django import db

from mlserve.errors import ErrorCode
from mlserve.postgres.failures import Failure, failure_of

RETRY_AFTER_S: Final = 2
"""How long Postgres' pool tries before it gives up: sooner makes no sense."""
_RETRY_SPREAD_S: Final = 4
"""All who were refused at one moment must not come back at one moment."""


class SourceError(msgspec.Struct, frozen=True, kw_only=True):
    """`detail` is for clients of the API; `title` and `why` for people, `stored` for those who sent a form."""

    code: ErrorCode
    detail: str
    title: str
    why: str
    stored: str


_NOTHING: Final = "Nothing of what you sent was stored."
_UNKNOWN: Final = "Whether what you sent was stored is not known: look before you send it again."

_ANSWERS: Final = {
    Failure.UNAVAILABLE: SourceError(
        code=ErrorCode.SOURCE_UNAVAILABLE,
        detail="The database does not answer; try again.",
        title="The database does not answer",
        why="PostgreSQL is away or takes no connections. Scores go on with what is cached.",
        stored=_UNKNOWN,
    ),
    Failure.TIMEOUT: SourceError(
        code=ErrorCode.SOURCE_UNAVAILABLE,
        detail="The database did not answer in time; try again.",
        title="The database did not answer in time",
        why="PostgreSQL hangs, is busy, or somebody keeps a table locked.",
        stored=_UNKNOWN,
    ),
    Failure.READ_ONLY: SourceError(
        code=ErrorCode.SOURCE_READ_ONLY,
        detail="The database is read-only at the moment: nothing was stored. What only reads goes on.",
        title="The database is read-only",
        why="PostgreSQL takes no writes at the moment. What is stored can still be read, by those who are logged in.",
        stored=_NOTHING,
    ),
    Failure.CONTENTION: SourceError(
        code=ErrorCode.SOURCE_CONTENTION,
        detail="Somebody else is changing the same rows: nothing was stored. Try again.",
        title="Somebody else is changing this",
        why="What you asked for is held by another change at the moment. Try again once that is over.",
        stored=_NOTHING,
    ),
    Failure.SESSION: SourceError(
        code=ErrorCode.SOURCE_UNAVAILABLE,
        detail="The connection to the database had to be replaced; try again.",
        title="The connection to the database was lost",
        why="It had to be replaced; the next try has a new one.",
        stored=_UNKNOWN,
    ),
}

AWAY: Final = _ANSWERS[Failure.UNAVAILABLE]
"""For what is not even tried while PostgreSQL is known to be away."""


def source_error_of(error: BaseException) -> SourceError | None:
    """None for what is no error of PostgreSQL, or one that another try would not mend."""
    if not isinstance(error, db.Error | psycopg.Error):
        return None
    return _ANSWERS.get(failure_of(error))


def retry_after(least_s: int = RETRY_AFTER_S) -> str:
    """The value of `Retry-After`: at least so many seconds, and a few more by lot."""
    return str(least_s + randrange(_RETRY_SPREAD_S))
