"""How an embedded server's process is started, recognised and stopped.

A process is recognised by the folder it runs in, never by a remembered number: process ids are reused, a folder
of ours is not. Servers get a session of their own, so that Ctrl-C in a terminal and the end of the command that
started them leave them running.
"""

import enum
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
# Below the range from which Linux and macOS draw ports for outgoing connections, which could sit on a remembered port.
_PORTS = range(15_000, 30_000)
_LOG_LIMIT_BYTES = 5 * 1024 * 1024
_POLL_S = 0.02
_UNPRIVILEGED = ("nobody", "daemon", "postgres")

_started: list[subprocess.Popen[bytes]] = []


class EmbeddedServerError(RuntimeError):
    """An embedded server cannot be started or reached; the message names the log and the fix."""


class Health(enum.Enum):
    """What a server answers when it is asked with its password."""

    ALIVE = "alive"
    STARTING = "starting"
    ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user that the servers run as; another one than ours only if we are root, whom PostgreSQL refuses."""

    name: str
    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        return self.uid != os.geteuid()

    def popen_arguments(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other else {}

    def make_folder(self, path: Path) -> None:
        """Makes a folder that this account owns and nobody else enters; its parent must be ours, not the account's."""
        path.mkdir(mode=0o700, exist_ok=True)
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def make_passage(self, path: Path) -> None:
        """Makes a folder of ours that this account may pass through but not write to.

        What we write (logs, records) lies in such folders: were it in the account's own, the account could put a
        symbolic link there and have root write elsewhere.
        """
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o711 if self.is_other else 0o700)

    def write_secret(self, path: Path, text: str) -> None:
        """Writes a file that only this account (and root) can read."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            if self.is_other:
                os.fchown(file.fileno(), self.uid, self.gid)
            file.write(text)


def service_account() -> Account:
    """Ourselves, or an unprivileged user if we are root."""
    if os.geteuid() != 0:
        return Account(name="", uid=os.geteuid(), gid=os.getegid())
    for name in _UNPRIVILEGED:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name=name, uid=found.pw_uid, gid=found.pw_gid)
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root, and none of the users {', '.join(_UNPRIVILEGED)} exists to run it instead; "
        "create one, run as another user, or set DATABASE_URL to a server of your own"
    )


def runs(command: Sequence[str | Path], *, account: Account) -> bool:
    """Whether `account` can run `command` to success: reachable, executable, libraries found."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=server_environment(),
            timeout=30,
            **account.popen_arguments(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def server_environment() -> dict[str, str]:
    """A small fixed environment: neither our secrets nor the caller's PG* variables and locale reach a server."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/"}


def spawn(command: Sequence[str | Path], *, directory: Path, log: Path, account: Account) -> subprocess.Popen[bytes]:
    """Starts a server in `directory`, in a session of its own, its output appended to `log`."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        log.chmod(0o600)
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=server_environment(),
            start_new_session=True,
            umask=0o077,
            **account.popen_arguments(),
        )
    # Kept, because it outlives its starter on purpose: dropping the object would warn of a child still running.
    _started.append(process)
    return process


def wait_until_alive(
    probe: Callable[[], Health], *, name: str, log: Path, process: subprocess.Popen[bytes] | None, limit_s: float
) -> None:
    """Returns once `probe` says alive; raises EmbeddedServerError if the process ends or `limit_s` passes."""
    deadline = time.monotonic() + limit_s
    while (health := probe()) is not Health.ALIVE:
        if process is not None and process.poll() is not None:
            raise failure(f"{name} ended with exit code {process.returncode} while starting", log=log)
        if process is None and health is Health.ABSENT:
            raise failure(f"{name} went away while starting", log=log)
        if time.monotonic() > deadline:
            raise failure(f"{name} did not answer within {limit_s:.0f} s", log=log)
        time.sleep(_POLL_S)


def failure(problem: str, *, log: Path) -> EmbeddedServerError:
    """An error with the place of the log and its last lines."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
    except OSError:
        lines = []
    tail = "".join(f"\n    {line}" for line in lines) or " (empty)"
    return EmbeddedServerError(f"{problem}; the end of its log {log}:{tail}")


def processes_in(*directories: Path, executable: str) -> list[int]:
    """Ids of the live processes named `executable` whose working folder is one of `directories`, oldest first.

    A folder that was deleted under a running server still counts.
    """
    import psutil  # costs 20 ms, and most commands find their servers running

    wanted = {str(directory.resolve()) for directory in directories}
    wanted |= {f"{path} (deleted)" for path in wanted}
    found: list[tuple[float, int]] = []
    for process in psutil.process_iter(["name", "status", "create_time"]):
        if process.info["name"] != executable or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        try:
            cwd = process.cwd()
        except psutil.Error:
            continue
        if cwd in wanted:
            found.append((process.info["create_time"], process.pid))
    return [pid for _, pid in sorted(found)]


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """Signals each process that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_until_gone(find: Callable[[], list[int]], *, limit_s: float) -> bool:
    """Whether `find` came back empty within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        _reap()
        if not find():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _reap() -> None:
    _started[:] = [process for process in _started if process.poll() is None]


def choose_port(preferred: int | None) -> int:
    """`preferred` if nothing uses it, so that URLs stay what they were; else a free one."""
    if preferred is not None and _is_free(preferred):
        return preferred
    candidates = random.SystemRandom().sample(_PORTS, 200)
    for port in candidates:
        if _is_free(port):
            return port
    raise EmbeddedServerError(f"no free port on {LOOPBACK} between {_PORTS.start} and {_PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def say(stage: str) -> None:
    """One line on stderr about what takes time, so that stdout stays the command's own."""
    print(f"mlserve: {stage}", file=sys.stderr, flush=True)
