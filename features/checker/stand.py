"""The servers and processes of one run, in a directory of its own that is gone afterwards: never the user's."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec

from features.checker.ablations import PLANTS
from features.checker.cache_servers import CacheServers
from features.checker.children import ChildFailed, Children
from features.checker.run_file import RunFile
from features.checker.writers import CRASHED
from mlserve.embedded import Servers

RELAYS = 2
BUDGET_MS = 100
"""Of one read for L2: twice the default, since everything shares few processors here."""
NUMBERS_PER_WRITER = 10_000_000
_TICK_S = 0.02
_PARENT = Path("/var/tmp")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`pause_s`: mean pause of a reader's thread between two requests."""

    readers: int = 3
    threads: int = 4
    pause_s: float = 0.012
    writers: int = 3
    writes_per_second: float = 200.0


class Stand:
    """Used by one thread, which waits with `pause` only: meanwhile processes that ended are noticed and replaced."""

    def __init__(self, directory: Path, *, run: RunFile, load: Load, on_tick: Callable[[], None]) -> None:
        self.directory = directory
        self.run = run
        self.crashes = 0
        """Writers that ended themselves between commit and invalidation."""
        self.failures: list[str] = []
        """Processes that ended and should not have."""
        self.readers: dict[int, int] = {}
        """Number of a reader's place to its pid."""
        self.relays: dict[int, int] = {}
        self._load = load
        self._on_tick = on_tick
        self._processes = count(1)
        self._expected: set[int] = set()
        self._writers: dict[int, int] = {}
        self.ended: dict[int, int] = {}
        """Exit codes of what has ended, by pid."""
        self.postgres = Servers(directory, durable=False)
        self.cache = CacheServers(directory / "cache", pause=self.pause)
        self.children: Children | None = None

    # --- up and down ---

    def start(self) -> None:
        urls = self.postgres.up(("postgres",))
        assert urls.database_url is not None
        self.run.write()
        self.children = Children(self.directory, self._environment(urls.database_url))
        self.cache.start()
        self.children.wait_until_ready()
        self._play_to_the_end("migrate")
        for place in range(RELAYS):
            self.start_relay(place)
        self._play_to_the_end("populate", process=next(self._processes))
        for place in range(self._load.readers):
            self.start_reader(place)
        for _ in range(self._load.writers):
            self._start_writer()
        if self.run.ablation in PLANTS:
            self.fork(PLANTS[self.run.ablation])

    def stop(self) -> None:
        if self.children is not None:
            self.children.stop()
        self.cache.stop()
        self.postgres.destroy()

    def _environment(self, database_url: str) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "mlserve.settings.local",
            "DATABASE_URL": database_url,
            "REDIS_CACHE_URL": self.cache.url,
            "REDIS_BROKER_URL": "",
            "MLSERVE_VAR_DIR": str(self.directory),
            "PROMETHEUS_MULTIPROC_DIR": str(self.directory / "metrics"),
            "MLSERVE_CACHE_BUDGET_MS": str(BUDGET_MS),
            "MLSERVE_CACHE_PARTITIONS": "1",
            "MLSERVE_FRESHNESS_BOUND_MS": str(round(self.run.bound_s * 1000)),
            "OPENBLAS_NUM_THREADS": "1",
        }

    # --- processes ---

    def fork(self, role: str, **arguments: object) -> int:
        assert self.children is not None
        return self.children.fork(role, **arguments)

    def start_relay(self, place: int) -> None:
        self.relays[place] = self.fork("relay")

    def start_reader(self, place: int, *, clock_offset_ms: float = 0.0) -> None:
        self.readers[place] = self.fork(
            "reader",
            process=next(self._processes),
            threads=self._load.threads,
            pause_s=self._load.pause_s,
            clock_offset_ms=clock_offset_ms,
        )

    def _start_writer(self) -> None:
        process = next(self._processes)
        rate = self._load.writes_per_second / self._load.writers
        pid = self.fork("writer", process=process, numbers_from=process * NUMBERS_PER_WRITER, per_second=rate)
        self._writers[pid] = process

    def hold_transaction(self, seconds: float) -> int:
        process = next(self._processes)
        return self.fork("holder", process=process, numbers_from=process * NUMBERS_PER_WRITER, seconds=seconds)

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """False if it is gone already. A process that is killed here is not missed."""
        assert self.children is not None
        if number is signal.SIGKILL:
            self._expected.add(pid)
        return self.children.signal(pid, number)

    def _play_to_the_end(self, role: str, **arguments: object) -> None:
        pid = self.fork(role, **arguments)
        self.wait(lambda: pid in self.ended, within_s=60)
        if self.ended[pid]:
            raise ChildFailed(f"{role} failed: {self.end_of_log()}")

    # --- waiting ---

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            self._notice_ends()
            self._on_tick()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _TICK_S))

    def wait(self, condition: Callable[[], bool], *, within_s: float) -> bool:
        """Whether it became true in time."""
        until = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > until:
                return False
            self.pause(_TICK_S)
        return True

    def _notice_ends(self) -> None:
        if self.children is None:
            return
        for pid, code in self.children.exits():
            self.ended[pid] = code
            if pid in self._writers:
                del self._writers[pid]
                if code == CRASHED:
                    self.crashes += 1
                    self._start_writer()
                    continue
            if code and pid not in self._expected:
                self.failures.append(f"process {pid} ended with {code}: {self.end_of_log()}")

    def end_of_log(self) -> str:
        return (self.directory / "children.log").read_text("utf-8", "replace")[-1500:]

    @property
    def writers_running(self) -> int:
        return len(self._writers)


@contextmanager
def directory(*, keep: Callable[[], Path | None]) -> Iterator[Path]:
    """For one run. In the end it is removed; `keep` may then name a folder to which its logs go."""
    _sweep()
    # Below /var/tmp, where the user who runs PostgreSQL in place of root can reach it too.
    made = Path(tempfile.mkdtemp(prefix=_prefix(os.getpid()), dir=_PARENT))
    made.chmod(0o711)
    try:
        yield made
    finally:
        kept = keep()
        if kept is not None:
            _keep_logs(made, kept)
        Servers(made).destroy()
        shutil.rmtree(made, ignore_errors=True)


def _keep_logs(made: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copytree(made / "history", kept / "history", dirs_exist_ok=True)
    for log in ("children.log", "stand.json", "schedule.json", "verdict.json"):
        if (made / log).exists():
            shutil.copy(made / log, kept / log)
    for of_server in (made / "cache").glob("*/valkey.log"):
        shutil.copy(of_server, kept / f"{of_server.parent.name}.log")


def _prefix(pid: int | str) -> str:
    return f"mlserve-checker-{os.geteuid()}-{pid}-"


def _sweep() -> None:
    """Removes what runs left that were killed with -9."""
    for left in _PARENT.glob(_prefix("*") + "*"):
        pid = left.name.removeprefix(f"mlserve-checker-{os.geteuid()}-").partition("-")[0]
        if left.stat().st_uid == os.geteuid() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            Servers(left).destroy()
            shutil.rmtree(left, ignore_errors=True)
