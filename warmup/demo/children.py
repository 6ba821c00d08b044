"""The demo's processes: started, watched, restarted, stopped to the last.

Each is the leader of a process group of its own: Ctrl-C in the terminal reaches only the demo, which then stops them
in order, and what a child leaves behind in its group is found. A record on disk tells the next demo which processes
a demo that was killed with -9 left behind.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

import psutil

from mlserve.errors import ErrorCode, MlserveError
from mlserve.servers.record import write_json

STOP_S: Final = 10.0
"""From TERM to KILL."""
SOUND_AFTER_S: Final = 30.0
"""Who has run for so long and then dies was killed, or lost a server: it is started again as if for the first time."""
_LONGEST_PAUSE_S: Final = 16.0
_TAIL_LINES: Final = 15
_LOG_LIMIT_BYTES: Final = 5 * 1024 * 1024
_POLL_S: Final = 0.05


class ChildFailed(MlserveError):
    """A process that the demo cannot do without has ended, and again soon after its restart."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to start a child. Without an `essential` one the demo makes no sense."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    essential: bool = False


@dataclass
class _Child:
    recipe: Recipe
    process: "subprocess.Popen[bytes]"
    started_at: float
    failures: int = 0
    """In a row, each soon after its start."""
    again_at: float | None = None
    """When it is started again, if it has ended."""


@dataclass
class Children:
    """`log_dir` gets a log per child, `record` is the file that outlives a demo that was killed."""

    log_dir: Path
    record: Path
    say: Callable[[str], None]
    monotonic: Callable[[], float] = time.monotonic
    _children: list[_Child] = field(default_factory=list)

    def start(self, recipe: Recipe) -> None:
        self._children.append(_Child(recipe, self._spawn(recipe), self.monotonic()))
        self._write_record()

    def tend(self) -> None:
        """Restarts who died: at once, and after ever longer pauses who dies again and again.

        Raises ChildFailed if an essential one does that.
        """
        for child in self._children:
            if child.again_at is None:
                status = child.process.poll()
                if status is None:
                    continue
                _kill_group(child.process.pid)
                self._note_end(child, status)
            assert child.again_at is not None
            if child.again_at <= self.monotonic():
                child.process, child.started_at, child.again_at = self._spawn(child.recipe), self.monotonic(), None
                self._write_record()

    def _note_end(self, child: _Child, status: int) -> None:
        now, name, log = self.monotonic(), child.recipe.name, self._log(child.recipe)
        child.failures = 1 if now - child.started_at >= SOUND_AFTER_S else child.failures + 1
        pause_s = 0.0 if child.failures == 1 else min(2.0 ** (child.failures - 2), _LONGEST_PAUSE_S)
        child.again_at = now + pause_s
        if child.failures == 1:
            self.say(f"{name} ended ({_ending(status)}); it is started again, see {log}")
        elif child.failures == 2:  # what follows would say the same
            report = f"{name} ended again ({_ending(status)}); the last lines of {log}:\n{_tail(log)}"
            if child.recipe.essential:
                raise ChildFailed(report)
            self.say(f"{report}\nThe demo goes on; {name} is started again every {_LONGEST_PAUSE_S:g} s at the latest.")

    def stop(self) -> None:
        """The last one started first: TERM, all at once but in this order, and KILL for who does not heed it."""
        for child in reversed(self._children):
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + STOP_S
        for child in reversed(self._children):
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            _kill_group(child.process.pid)
            child.process.wait()
        if self._children:  # else the record is still the one of a demo that was killed
            self.record.unlink(missing_ok=True)
        self._children.clear()

    def _spawn(self, recipe: Recipe) -> "subprocess.Popen[bytes]":
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with _opened_log(self._log(recipe)) as log:
            return subprocess.Popen(
                recipe.argv,
                env=dict(recipe.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log(self, recipe: Recipe) -> Path:
        return self.log_dir / f"{recipe.name}.log"

    def _write_record(self) -> None:
        groups: dict[str, float] = {}
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                groups[str(child.process.pid)] = psutil.Process(child.process.pid).create_time()
        write_json(self.record, groups)


def _opened_log(path: Path) -> BinaryIO:
    """To append to, for this user only: it may name customers. What has become too long makes way."""
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    os.fchmod(file.fileno(), 0o600)
    return file


def stop_leftovers(record: Path) -> int:
    """Ends the children of a demo that was killed; the number of their groups. Never touches a reused process id."""
    try:
        groups = {int(pid): float(created) for pid, created in json.loads(record.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return 0
    ended = 0
    for pid, created in groups.items():
        with suppress(psutil.NoSuchProcess):
            if abs(psutil.Process(pid).create_time() - created) < 1.0:
                _kill_group(pid)
                ended += 1
    record.unlink(missing_ok=True)
    return ended


def _kill_group(pid: int) -> None:
    """Kills what is left of the group, and returns when nothing of it runs."""
    deadline = time.monotonic() + STOP_S
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
        while _running_members(pid) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _running_members(group: int) -> list[int]:
    """Without those that have ended and that nobody has asked for their exit code yet."""
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


def _ending(status: int) -> str:
    return f"exit code {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines)
