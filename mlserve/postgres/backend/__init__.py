"""Django's PostgreSQL backend, with sessions that have limits (`ENGINE = "mlserve.postgres.backend"`)."""
