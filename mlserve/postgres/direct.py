"""A session for whoever needs one of its own for as long as it runs, past a pooler if there is one.

What it needs beyond the defaults is set after connecting: poolers refuse `options` in the startup packet.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from django.conf import settings as django_settings
from django.db import connection as django_connection
from psycopg.conninfo import conninfo_to_dict

from mlserve.errors import ErrorCode, MlserveError
from mlserve.postgres.sessions import POOLER_OPTION, BoundedConnection, limits_in_force

_OF_DJANGO = ("context", "cursor_factory", "prepare_threshold")


class DirectAddressNeeded(MlserveError):
    """The only address that is known is a pooler's that has no sessions."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE

    def __init__(self, who: str) -> None:
        super().__init__(
            f"{who} needs a session of its own, and DATABASE_URL leads to a pooler in transaction mode: set "
            "DATABASE_DIRECT_URL to PostgreSQL's own address"
        )


def connect_directly(name: str, *, settings: Mapping[str, str]) -> BoundedConnection:
    """A connection in autocommit by DATABASE_DIRECT_URL, or else by Django's address and account, with the limits of
    the kind of session in force. `name` is what `pg_stat_activity` shows, and begins with the project's.

    Raises DirectAddressNeeded, or psycopg's errors.
    """
    connection = BoundedConnection.connect(**_parameters(name), autocommit=True)
    try:
        connection.state_what_it_relies_on(time_zone=django_settings.TIME_ZONE, others=settings)
        connection.keep_to(limits_in_force())
    except BaseException:
        connection.close()
        raise
    return connection


def _parameters(name: str) -> dict[str, Any]:
    ours: dict[str, Any] = django_connection.get_connection_params()
    known = {parameter: value for parameter, value in ours.items() if parameter not in _OF_DJANGO}
    if django_settings.DATABASE_DIRECT_URL:
        for of_address in ("host", "port", "user", "password", "dbname"):
            known.pop(of_address, None)
        known |= conninfo_to_dict(django_settings.DATABASE_DIRECT_URL)
    elif django_connection.settings_dict["OPTIONS"].get(POOLER_OPTION):
        raise DirectAddressNeeded(name)
    return {**known, "application_name": name}
