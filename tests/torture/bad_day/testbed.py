"""The servers and processes of one day, in a folder of its own that is gone afterwards: never the user's.

Two web processes, a relay, two Celery workers and beat, as the demo starts them and starts them again; PostgreSQL and
two Valkeys out of wheels.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from benchmarks.score_world import ScoreWorld
from mlserve.embedded import Servers
from mlserve.servers.place import choose_home, postgres_installation
from mlserve.servers.postgres import PostgresServer
from mlserve.servers.process import choose_port, send, service_account
from mlserve.servers.valkey import BROKER_SETTINGS, CACHE_SETTINGS, ValkeyServer
from mlserve.settings.env import BASE_DIR, child_environment
from tests.torture.bad_day.web_client import WebClient
from warmup.demo import recipes
from warmup.demo.children import Children, Recipe, stop_leftovers

WEBS = 2
READY_WITHIN_S = 180.0
ADMIN, ADMIN_PASSWORD = "admin", "a-password-for-one-bad-day"
SPOOL_BYTES = 1024 * 1024 * 1024
"""Of the spool's own file system, where this user may mount one: in memory, which takes no more than lies there."""
_TEND_EVERY_S = 0.2
_PREPARE_S = 600.0
_PARENT = Path("/var/tmp")
_PREFIX = f"mlserve-bad-day-{os.geteuid()}-"
_ANSWER_S = 5.0
_SCOPES = "score,label,debug,operate"


class TestbedFailed(Exception):
    """The day cannot begin: a server or a process does not come up."""


class Testbed:
    """Broken by one thread. `say` gets a line about what happens."""

    def __init__(self, root: Path, *, say: Callable[[str], None]) -> None:
        self.root = root
        self.var = root / "var"
        self.var.mkdir(exist_ok=True)
        self.say = say
        self.account = service_account()
        self.home = choose_home(root, account=self.account)
        self.postgres = PostgresServer(self.home, account=self.account, durable=False)
        self.cache_settings = dict(CACHE_SETTINGS)
        """Of the next start of the cache's server."""
        self.cache = ValkeyServer(
            self.home, name="cache", settings=self.cache_settings, account=self.account, durable=False
        )
        self.broker = ValkeyServer(
            self.home, name="broker", settings=BROKER_SETTINGS, account=self.account, durable=False
        )
        self.world = ScoreWorld(key="", pairs=[])
        self.webs: list[WebClient] = []
        self.recipes: dict[str, Recipe] = {}
        self.children = Children(self.var / "log", root / "children.json", self._note_child)
        self.restarts: list[str] = []
        """What the supervisor said of processes that ended."""
        self._environment: dict[str, str] = {}
        self._stop = threading.Event()
        self._supervisor = threading.Thread(target=self._tend, name="supervisor", daemon=True)
        self._spool_is_mounted = False

    # --- up and down ---

    def start(self) -> None:
        """Everything runs and every web process is ready. Raises TestbedFailed."""
        began = time.monotonic()
        for server in (self.postgres, self.cache, self.broker):
            server.ensure()
        self._environment = self._environment_of_children()
        self._mount_spool()
        self.world = self._fill()
        key = self.manage("api_key", "create", "--name", "bad-day", "--scopes", _SCOPES, "--json")
        self.manage("createsuperuser", "--noinput", "--username", ADMIN, "--email", "", password=ADMIN_PASSWORD)
        self.webs = [
            WebClient(choose_port(None), key=json.loads(key)["key"], admin=(ADMIN, ADMIN_PASSWORD)) for _ in range(WEBS)
        ]
        for recipe in self._recipes():
            self.recipes[recipe.name] = recipe
            self.children.start(recipe)
        self._supervisor.start()
        self.wait(lambda: all(web.is_ready() for web in self.webs), within_s=READY_WITHIN_S, what="the web processes")
        for web in self.webs:
            web.log_in()
        self.say(f"the testbed runs after {time.monotonic() - began:.0f} s: {self.root}")

    def stop(self) -> None:
        self._stop.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        self.children.stop()
        for server in (self.postgres, self.cache, self.broker):
            send(server.pids(), signal.SIGCONT)
            server.kill()
        _unmount(self.spool)

    def stop_in_order(self, *, within_s: float) -> list[str]:
        """SIGTERM to every process at once; the names of those that did not end in time."""
        self._stop.set()
        self._supervisor.join()
        pids = {name: pid for name in self.recipes if (pid := self.pid_of(name)) is not None}
        processes = {name: psutil.Process(pid) for name, pid in pids.items() if psutil.pid_exists(pid)}
        for process in processes.values():
            process.terminate()
        _, alive = psutil.wait_procs(list(processes.values()), timeout=within_s)
        return [name for name, process in processes.items() if process in alive]

    def _environment_of_children(self) -> dict[str, str]:
        assert self.postgres.url and self.cache.url and self.broker.url
        return {
            "DJANGO_SETTINGS_MODULE": "tests.torture.bad_day.settings",
            "DATABASE_URL": self.postgres.url,
            "REDIS_CACHE_URL": self.cache.url,
            "REDIS_BROKER_URL": self.broker.url,
            "MLSERVE_VAR_DIR": str(self.var),
            "PROMETHEUS_MULTIPROC_DIR": str(self.var / "metrics"),
            "PYTHONPATH": str(BASE_DIR),
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _recipes(self) -> Iterator[Recipe]:
        for number, client in enumerate(self.webs):
            web = recipes.web(port=client.port)
            argv = list(web.argv)
            argv[argv.index("--workers") + 1] = "1"
            yield self._ours(replace(web, name=f"web-{number}", argv=argv, essential=False))
        yield self._ours(recipes.relay())
        for recipe in recipes.workers_and_beat():
            yield self._ours(recipe)

    def _ours(self, recipe: Recipe) -> Recipe:
        return replace(recipe, environment={**recipe.environment, **self._environment})

    def _fill(self) -> ScoreWorld:
        self.say("filling the database and training a model")
        done = self._run([sys.executable, "-m", "benchmarks.score_world"])
        found = json.loads(done.splitlines()[-1])
        return ScoreWorld(found["key"], [(customer, merchant) for customer, merchant in found["pairs"]])

    def manage(self, *arguments: str, password: str = "", within_s: float = _PREPARE_S, fails: bool = True) -> str:
        """What the command prints. Raises TestbedFailed if it fails, unless it may."""
        command = [sys.executable, str(BASE_DIR / "manage.py"), *arguments]
        return self._run(command, within_s=within_s, fails=fails, DJANGO_SUPERUSER_PASSWORD=password)

    def _run(self, command: list[str], *, within_s: float = _PREPARE_S, fails: bool = True, **more: str) -> str:
        done = subprocess.run(
            command,
            env=child_environment(**self._environment, **more),
            capture_output=True,
            text=True,
            timeout=within_s,
            cwd=BASE_DIR,
        )
        if done.returncode and fails:
            raise TestbedFailed(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def _mount_spool(self) -> None:
        """A small file system of its own for the spool, if this user may: to be full without harm to others."""
        self.spool.mkdir(exist_ok=True)
        if os.geteuid() == 0 and sys.platform == "linux":
            options = ["-t", "tmpfs", "-o", f"size={SPOOL_BYTES},mode=700", "tmpfs", str(self.spool)]
            self._spool_is_mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0

    @contextmanager
    def full_spool(self) -> Iterator[None]:
        """Nothing is left on the spool's file system. Where it has none of its own, no file of a web process grows."""
        if self._spool_is_mounted:
            found = os.statvfs(self.spool)
            self._resize_spool((found.f_blocks - found.f_bfree) * found.f_frsize)
            try:
                yield
            finally:
                self._resize_spool(SPOOL_BYTES)
            return
        limited = [each for name, each in self.processes().items() if name.startswith("web-")]
        for process in limited:
            process.rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            for process in limited:
                with suppress(psutil.Error):
                    process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _resize_spool(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(self.spool)], check=True)

    # --- what the day looks at ---

    @property
    def spool(self) -> Path:
        return self.var / "spool"

    def database(self, **options: Any) -> "psycopg.Connection[Any]":
        """A superuser's session past everything that a fault sets, in autocommit."""
        assert self.postgres.url is not None
        settings = "-c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed"
        return psycopg.connect(
            self.postgres.url,
            autocommit=True,
            connect_timeout=5,
            application_name="bad-day",
            options=settings,
            **options,
        )

    def valkey(self, url: str | None = None) -> Any:
        """A client of the cache's server, or of another one, that never waits for long."""
        return redis.Redis.from_url(
            url or self.cache.url or "", socket_timeout=_ANSWER_S, decode_responses=True, retry=None
        )

    def pid_of(self, name: str) -> int | None:
        """Of the child's main process, None while it is not there."""
        argv = list(self.recipes[name].argv)
        with suppress(OSError, ValueError):
            for pid in json.loads((self.root / "children.json").read_text()):
                with suppress(psutil.Error):
                    process = psutil.Process(int(pid))
                    if process.cmdline() == argv and process.status() != psutil.STATUS_ZOMBIE:
                        return int(pid)
        return None

    def processes(self) -> dict[str, psutil.Process]:
        """All of ours that live, by name: a child is `web-0`, what it has started `web-0/1` and so on."""
        found: dict[str, psutil.Process] = {}
        for name in self.recipes:
            pid = self.pid_of(name)
            if pid is None:
                continue
            with suppress(psutil.Error):
                found[name] = psutil.Process(pid)
                below = sorted(found[name].children(recursive=True), key=lambda each: each.pid)
                found |= {f"{name}/{place}": process for place, process in enumerate(below, start=1)}
        return found

    def everything(self) -> list[psutil.Process]:
        """Our processes and the servers'."""
        found = list(self.processes().values())
        for pid in [*self.postgres.pids(), *self.cache.pids(), *self.broker.pids()]:
            with suppress(psutil.Error):
                found.append(psutil.Process(pid))
        return found

    # --- waiting ---

    def pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def wait(self, condition: Callable[[], object], *, within_s: float, what: str) -> None:
        """Raises TestbedFailed if it does not become true in time."""
        until = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > until:
                raise TestbedFailed(f"{what}: not within {within_s:g} s")
            self.pause(0.05)

    def _tend(self) -> None:
        while not self._stop.wait(_TEND_EVERY_S):
            self.children.tend()

    def _note_child(self, line: str) -> None:
        self.restarts.append(line)

    # --- another PostgreSQL ---

    def another_postgres(self, name: str) -> PostgresServer:
        """One of its own below the folder, not started."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        return PostgresServer(choose_home(folder, account=self.account), account=self.account, durable=False)

    def postgres_program(self, name: str) -> str:
        return str(postgres_installation(self.home, account=self.account) / "bin" / name)


@contextmanager
def testbed(*, say: Callable[[str], None], keep: Path | None = None) -> Iterator[Testbed]:
    """Runs until the end of the block. Its logs then go to the folder `keep`, if there is one; all else is removed."""
    _sweep()
    # Below /var/tmp, where the user who runs PostgreSQL in place of root can reach it too.
    root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_PARENT))
    root.chmod(0o711)
    bed = Testbed(root, say=say)
    try:
        bed.start()
        yield bed
    finally:
        bed.stop()
        if keep is not None:
            _keep_logs(bed, keep)
        _remove(root)


def _keep_logs(bed: Testbed, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for log in [*(bed.var / "log").glob("*"), *bed.root.glob("*.jsonl"), bed.postgres.log, bed.cache.log]:
        if log.is_file():
            shutil.copy(log, keep / log.name)


def _sweep() -> None:
    """Removes what days left that were killed with -9."""
    for left in _PARENT.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if left.stat().st_uid == os.geteuid() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            stop_leftovers(left / "children.json")
            _unmount(left / "var" / "spool")
            _remove(left)


def _remove(root: Path) -> None:
    for folder in [root, *(each.parent for each in root.glob("*/servers"))]:
        Servers(folder).destroy()
    shutil.rmtree(root, ignore_errors=True)


def _unmount(folder: Path) -> None:
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)
