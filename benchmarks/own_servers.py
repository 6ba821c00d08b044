"""Servers that live for one benchmark: a PostgreSQL and a Valkey that may be frozen, filled and killed."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contest import BenchmarkFailed
from mlserve.embedded import NAMES, Servers
from mlserve.servers.process import EmbeddedServerError
from mlserve.settings import env


@contextmanager
def own_servers(which: Sequence[str] = NAMES) -> Iterator[tuple[Servers, Mapping[str, str]]]:
    """The servers, and the environment of a process that uses them and nothing of the user's. Some five seconds."""
    with tempfile.TemporaryDirectory(prefix="mlserve-bench-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o711)  # PostgreSQL runs as another user if we are root
        servers = Servers(root, durable=False)
        try:
            urls = servers.up(which)
            yield (
                servers,
                env.child_environment(
                    DJANGO_SETTINGS_MODULE="benchmarks.server_settings",
                    DATABASE_URL=urls.get("postgres") or "",
                    REDIS_CACHE_URL=urls.get("cache") or "",
                    REDIS_BROKER_URL=urls.get("broker") or "",
                    MLSERVE_VAR_DIR=str(root),
                    PROMETHEUS_MULTIPROC_DIR=str(root / "metrics"),
                    PYTHONPATH=str(env.BASE_DIR),
                ),
            )
        except EmbeddedServerError as error:
            raise BenchmarkFailed(f"bench: its own servers do not start: {error}") from error
        finally:
            servers.destroy()
