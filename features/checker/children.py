"""The processes of a run: relays, readers, writers. All are forks of one that has loaded the application already.

So each is a process of its own, with its own engine, connections and threads, and a killed one is replaced in a tenth
of a second. What a run takes away from the code (`ablations.py`) it takes away there, and only there.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlserve.servers.valkey_node import die_with_parent
from mlserve.settings import env

_START_S = 60.0
_ANSWER_S = 10.0


class ChildFailed(Exception):
    """The process from which the others are forked is gone, or did not start; the message has the end of its log."""


class Exit(NamedTuple):
    """`code` as subprocess has it: negative for a signal."""

    pid: int
    code: int


class Children:
    """`directory`: where `stand.json` lies and the logs go."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._log = directory / "children.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "features.checker.child", str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=env.BASE_DIR,
                env=env.child_environment(**environment),
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout
        self._pending = b""
        self._answered: list[dict[str, Any]] = []
        self._exits: list[Exit] = []
        self.running: dict[int, str] = {}
        """Pid to role."""

    def wait_until_ready(self) -> None:
        self._read_until("ready", _START_S)

    def fork(self, role: str, **arguments: Any) -> int:
        """The pid of a new process that plays `role`."""
        self._commands.write(json.dumps({"role": role, **arguments}).encode() + b"\n")
        self._commands.flush()
        pid = int(self._read_until("forked", _ANSWER_S))
        self.running[pid] = role
        return pid

    def exits(self) -> list[Exit]:
        """Those since the last call."""
        while self._readable(0):
            self._take_lines()
        ended, self._exits = self._exits, []
        for each in ended:
            self.running.pop(each.pid, None)
        return ended

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """False if it is gone already."""
        if pid not in self.running:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def stop(self) -> None:
        """kill -9, all of them."""
        for pid in list(self.running):
            self.signal(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._commands.close()
        self._answers.close()

    def _read_until(self, what: str, within_s: float) -> Any:
        while not self._answered:
            if not self._readable(within_s):
                raise ChildFailed(f"no answer within {within_s:g} s: {self._end_of_log()}")
            self._take_lines()
        return self._answered.pop(0)[what]

    def _readable(self, within_s: float) -> bool:
        return bool(select.select([self._answers], [], [], within_s)[0])

    def _take_lines(self) -> None:
        data = os.read(self._answers.fileno(), 65_536)
        if not data:
            raise ChildFailed(self._end_of_log())
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "exited" in message:
                self._exits.append(Exit(message["exited"], message["code"]))
            else:
                self._answered.append(message)

    def _end_of_log(self) -> str:
        return self._log.read_text("utf-8", "replace")[-1500:]


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken hold."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state == "T"
