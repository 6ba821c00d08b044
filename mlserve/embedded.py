"""PostgreSQL 18 and two Valkey 9 out of wheels: servers for a laptop, the demo and the tests, without Docker.

`manage.py` calls `prepare_command`, the web and worker processes call `prepare_process`: whichever of DATABASE_URL,
REDIS_CACHE_URL and REDIS_BROKER_URL is not set, its server is started if it does not run yet, and the variable set.
The servers are shared by all commands of a checkout and outlive them; `manage.py services down` stops them.

Below the root (`var/`): `services.json` (URLs with passwords, mode 600), `services.lock`, `servers/` (data, logs).
"""

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mlserve.servers import postgres, valkey
from mlserve.servers.place import choose_home, far_home, near_home
from mlserve.servers.postgres import PostgresServer
from mlserve.servers.process import EmbeddedServerError, Health, say, send, service_account
from mlserve.servers.record import read_json, write_json
from mlserve.servers.valkey import BROKER_SETTINGS, CACHE_SETTINGS, ValkeyServer

NAMES = ("postgres", "cache", "broker")
VARIABLES = {"DATABASE_URL": "postgres", "REDIS_CACHE_URL": "cache", "REDIS_BROKER_URL": "broker"}

# Commands that need no server, and those that use the servers that happen to run.
_WITHOUT = frozenset({"help", "version", "services", "collectstatic", "findstatic", "diffsettings", "check_freshness"})
_SERVING = frozenset({"runserver", "relay", "inspect"})
"""Run for as long as the service does, so their figures belong to it."""
_IF_RUNNING = frozenset({"check", "makemigrations", "spectacular", "doctor", "spool"})

_started: list[str] = []
INTERRUPTED = 130
"""What a shell shows for a command that Ctrl-C has ended."""


@dataclass(frozen=True, kw_only=True)
class ServerUrls:
    """Where the servers answer; with passwords. None for a server that does not run."""

    database_url: str | None
    redis_cache_url: str | None
    redis_broker_url: str | None

    def get(self, name: str) -> str | None:
        return {"postgres": self.database_url, "cache": self.redis_cache_url, "broker": self.redis_broker_url}[name]


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """One server as it is now. `pids` may hold processes that do not answer."""

    name: str
    health: str
    version: str | None
    port: int | None
    pids: list[int]
    directory: str
    log: str


class Servers:
    """The three servers of one root folder. Every method is safe against other processes doing the same."""

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        """`durable=False` gives up fsync: for tests, whose data nobody misses."""
        self.root = root
        self._durable = durable
        self.started: list[str] = []
        """What `up` of this object found down and started, or began to start."""

    def up(self, which: Sequence[str] = NAMES) -> ServerUrls:
        """Starts what does not run. Raises EmbeddedServerError, which names the log and its last lines."""
        urls = self._running_urls()
        if all(urls.get(name) for name in which):
            return urls
        with self._lock():
            servers = self._servers()
            for name in which:
                if servers[name].health() is Health.ABSENT:
                    self.started.append(name)
                servers[name].ensure()
            return self._remember(servers)

    def running(self) -> ServerUrls:
        """The URLs of those that answer; starts nothing and writes nothing."""
        return self._running_urls()

    def down(self, which: Sequence[str] = NAMES) -> None:
        """Stops what runs, cleanly; the data stay."""
        if not self.root.exists():
            return
        with self._lock():
            servers = self._servers()
            for name in which:
                servers[name].stop()
            self._remember(servers)

    def status(self) -> list[ServerStatus]:
        if not self._has_been_used():
            return []
        return [
            ServerStatus(
                name=name,
                health=(health := server.health()).value,
                version=server.version() if health is Health.ALIVE else None,
                port=server.record.port if server.record else None,
                pids=server.pids(),
                directory=str(server.directory),
                log=str(server.log),
            )
            for name, server in self._servers().items()
        ]

    def pids(self, name: str) -> list[int]:
        """The server's processes, the main one first."""
        return self._servers()[name].pids()

    def kill(self, name: str) -> None:
        """kill -9, for drills and tests; returns when it is gone."""
        self._servers()[name].kill()

    def freeze(self, name: str) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        send(self._servers()[name].pids(), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        send(self._servers()[name].pids(), signal.SIGCONT)

    def destroy(self) -> None:
        """Stops all and deletes all data. For tests, and for who wants to begin again."""
        if not self.root.exists():
            return
        with self._lock():
            for server in self._servers().values():
                server.kill()
            shutil.rmtree(near_home(self.root), ignore_errors=True)
            shutil.rmtree(far_home(self.root), ignore_errors=True)
            self._state_path.unlink(missing_ok=True)

    @property
    def _state_path(self) -> Path:
        return self.root / "services.json"

    def _has_been_used(self) -> bool:
        return near_home(self.root).exists() or far_home(self.root).exists()

    def _servers(self) -> dict[str, PostgresServer | ValkeyServer]:
        account = service_account()
        home = choose_home(self.root, account=account)
        return {
            "postgres": PostgresServer(home, account=account, durable=self._durable),
            "cache": ValkeyServer(home, name="cache", settings=CACHE_SETTINGS, account=account, durable=self._durable),
            "broker": ValkeyServer(
                home, name="broker", settings=BROKER_SETTINGS, account=account, durable=self._durable
            ),
        }

    def _remember(self, servers: dict[str, PostgresServer | ValkeyServer]) -> ServerUrls:
        alive = {name: server.url for name, server in servers.items() if server.health() is Health.ALIVE}
        urls = ServerUrls(
            database_url=alive.get("postgres"),
            redis_cache_url=alive.get("cache"),
            redis_broker_url=alive.get("broker"),
        )
        write_json(self._state_path, asdict(urls))
        return urls

    def _running_urls(self) -> ServerUrls:
        """What the state file says, as far as a server that knows the password answers there."""
        found = read_json(self._state_path)

        def checked(field: str) -> str | None:
            url = found.get(field)
            if not isinstance(url, str):
                return None
            probe = postgres.probe if field == "database_url" else valkey.probe
            return url if probe(url) is Health.ALIVE else None

        return ServerUrls(
            database_url=checked("database_url"),
            redis_cache_url=checked("redis_cache_url"),
            redis_broker_url=checked("redis_broker_url"),
        )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One command at a time starts or stops servers; the lock goes with its process, however that ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / "services.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another command that starts or stops the servers")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def up(root: Path, *, which: Sequence[str] = NAMES, durable: bool = True) -> ServerUrls:
    """Starts the servers `which` below `root` that do not run. Raises EmbeddedServerError."""
    return Servers(root, durable=durable).up(which)


def down(root: Path) -> None:
    Servers(root).down()


def status(root: Path) -> list[ServerStatus]:
    """All three servers; empty if none was ever started below `root`."""
    return Servers(root).status()


def configured() -> dict[str, str]:
    """The variables that name servers of the operator's own, with the embedded server that each replaces."""
    return {variable: name for variable, name in VARIABLES.items() if os.environ.get(variable)}


def var_dir() -> Path:
    """The folder for run-time files: MLSERVE_VAR_DIR, or `var` in the checkout. `settings/env.py` says the same."""
    default = Path(__file__).resolve().parent.parent / "var"
    return Path(os.environ.get("MLSERVE_VAR_DIR") or default)


def prepare_command(argv: list[str]) -> None:
    """Readies the environment of one management command: settings module, URLs, servers if it needs them.

    Must run before Django loads its settings. Ends the process with exit code 1 and a message if a server cannot be
    started, and with 130 on Ctrl-C; servers that it had begun to start by then are stopped.
    """
    _default_settings(argv)
    if argv[1:2] and argv[1] in _SERVING:
        _share_metrics()
    need = _need(argv)
    if need == "start":
        try:
            _set_urls(start=True)
        except KeyboardInterrupt:
            raise SystemExit(interrupted(stop_servers=True)) from None
    elif need == "if running":
        _set_urls(start=False)


def started_here() -> tuple[str, ...]:
    """The servers that this process found down and started: what a command that tidies up after itself may stop."""
    return tuple(_started)


def interrupted(*, stop_servers: bool) -> int:
    """Says in a line that the command was interrupted; the exit code. `stop_servers`: those that it has started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # who asks twice gets the same end, not half of it
    started = started_here() if stop_servers else ()
    say("interrupted" + (f"; stopping {', '.join(started)}" if started else ""))
    if started:
        Servers(var_dir()).down(started)
    return INTERRUPTED


def prepare_process() -> None:
    """Readies the environment of a web or worker process, which always needs the servers.

    Does nothing once Django's settings are loaded: new URLs would come too late for them.
    """
    configuration = sys.modules.get("django.conf")
    if configuration is not None and configuration.settings.configured:
        return
    _default_settings([])
    _share_metrics()
    _set_urls(start=True)


def _share_metrics() -> None:
    """Lets this process count into the files that `/metrics` and the console add up.

    Processes that serve do; a command that is over in a moment would leave a handful of files behind each time.
    prometheus-client looks at the variable when it is first imported.
    """
    folder = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(var_dir() / "metrics")))
    folder.mkdir(parents=True, exist_ok=True)


def _default_settings(argv: list[str]) -> None:
    for position, argument in enumerate(argv):
        if argument.startswith("--settings="):
            os.environ["DJANGO_SETTINGS_MODULE"] = argument.partition("=")[2]
        elif argument == "--settings" and position + 1 < len(argv):
            os.environ["DJANGO_SETTINGS_MODULE"] = argv[position + 1]
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlserve.settings.local")


def _need(argv: list[str]) -> str:
    """`start`, `if running` or `nothing`."""
    command, options = (argv[1], set(argv[2:])) if len(argv) > 1 else ("help", set())
    if command.startswith("-") or options & {"-h", "--help", "--version"} or command in _WITHOUT:
        return "nothing"
    if command == "check" and any(option.startswith(("--database", "--deploy")) for option in options):
        return "start"
    return "if running" if command in _IF_RUNNING else "start"


def _set_urls(*, start: bool) -> None:
    if os.environ["DJANGO_SETTINGS_MODULE"].endswith(".production"):
        return  # production names its servers, or is refused by its settings
    missing = {variable: name for variable, name in VARIABLES.items() if variable not in configured()}
    if not missing:
        return
    servers = Servers(var_dir())
    try:
        urls = servers.running()
        if start:
            try:
                urls = servers.up(tuple(missing.values()))
            finally:
                _started.extend(servers.started)
    except EmbeddedServerError as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from error
    except OSError as error:
        advice = "set MLSERVE_VAR_DIR to a folder that you can write to"
        raise SystemExit(f"{Path(sys.argv[0]).name}: no servers in {servers.root}: {error}; {advice}") from error
    for variable, name in missing.items():
        url = urls.get(name)
        if url is not None:
            os.environ[variable] = url
