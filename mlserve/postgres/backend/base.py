"""Makes every connection of Django's, from the pool or without one, keep to the limits of what it is used for."""

from typing import Any

from django.db.backends.postgresql import base
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from mlserve.postgres.sessions import (
    KEEPALIVES,
    POOLER_OPTION,
    SETUP_S,
    TCP_USER_TIMEOUT_S,
    BoundedConnection,
    answer_within,
    limits_in_force,
)


class DatabaseWrapper(base.DatabaseWrapper):
    """As Django's. What it sends when it connects: one statement, and one more where the kind of session changes."""

    @property
    def behind_pooler(self) -> bool:
        """Whether a session is none: what it sets, another one finds."""
        return bool(self.settings_dict["OPTIONS"].get(POOLER_OPTION, False))

    def get_connection_params(self) -> dict[str, Any]:
        parameters: dict[str, Any] = super().get_connection_params()
        parameters.pop(POOLER_OPTION, None)
        lasting = {**KEEPALIVES, "tcp_user_timeout": int(TCP_USER_TIMEOUT_S * 1000)}
        return {**lasting, **parameters}

    def get_new_connection(self, conn_params: dict[str, Any]) -> BoundedConnection:
        self.isolation_level = IsolationLevel.READ_COMMITTED
        connection: BoundedConnection
        if self.pool:
            self.pool.open()
            with answer_within(SETUP_S):  # the pool asks first whether the connection is still good
                connection = self.pool.getconn()
        else:
            connection = BoundedConnection.connect(**conn_params)
        if connection.isolation_level is not IsolationLevel.READ_COMMITTED:
            connection.isolation_level = IsolationLevel.READ_COMMITTED
        return connection

    def init_connection_state(self) -> None:
        super().init_connection_state()
        self._keep_to_limits()

    def _configure_connection(self, connection: BoundedConnection) -> bool:
        if not self.behind_pooler:
            connection.state_what_it_relies_on(time_zone=self.timezone_name)
        return bool(super()._configure_connection(connection))  # type: ignore[misc]  # unknown to the stubs

    def _set_autocommit(self, autocommit: bool) -> None:
        if not autocommit:
            self._keep_to_limits()
        super()._set_autocommit(autocommit)  # type: ignore[misc]  # unknown to the stubs
        if not autocommit and self.behind_pooler and self._is_idle():
            with self.wrap_database_errors:
                self.connection.keep_transaction_to(limits_in_force())

    def create_cursor(self, name: str | None = None) -> Any:
        self._keep_to_limits()
        return super().create_cursor(name)

    def is_usable(self) -> bool:
        with answer_within(SETUP_S):
            return bool(super().is_usable())

    def _keep_to_limits(self) -> None:
        connection = self.connection
        if not self.behind_pooler and connection.limits_set is not limits_in_force():
            with self.wrap_database_errors:
                connection.keep_to(limits_in_force())

    def _is_idle(self) -> bool:
        status: TransactionStatus = self.connection.info.transaction_status
        return status == TransactionStatus.IDLE
