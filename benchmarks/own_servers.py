"""Servers that live for one benchmark: a PostgreSQL and a Valkey that may be frozen, filled and killed."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contest import BenchmarkFailed
from mlserve.embedded import NAMES, Servers
from mlserve.servers.place import choose_home, postgres_installation
from mlserve.servers.process import EmbeddedServerError, service_account
from mlserve.settings import env


@contextmanager
def own_servers(which: Sequence[str] = NAMES, *, durable: bool = False) -> Iterator[tuple[Servers, Mapping[str, str]]]:
    """The servers, and the environment of a process that uses them and nothing of the user's. Some five seconds.

    `durable`: they wait for their disk, as servers with data to lose do.
    """
    with tempfile.TemporaryDirectory(prefix="mlserve-bench-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o711)  # PostgreSQL runs as another user if we are root
        servers = Servers(root, durable=durable)
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


def postgres_program(servers: Servers, name: str) -> Path:
    """A program that comes with the embedded PostgreSQL."""
    account = service_account()
    program = postgres_installation(choose_home(servers.root, account=account), account=account) / "bin" / name
    if not program.is_file():
        raise BenchmarkFailed(f"bench: {program} is missing")
    return program
