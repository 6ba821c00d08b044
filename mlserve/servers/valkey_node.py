"""One Valkey process that is to be killed, frozen and started again: a member of a Sentinel or Cluster topology.

Other than the embedded servers (`valkey.py`) it dies with the process that started it, also if that is killed with -9.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlserve.servers.place import valkey_binary
from mlserve.servers.process import LOOPBACK, Account, choose_port

_PR_SET_PDEATHSIG = 1


class ValkeyProcess:
    """Below `directory`, which it makes; keeps its port over restarts. Start it from a thread that lives on."""

    def __init__(self, directory: Path, settings: Mapping[str, str], *, password: str, sentinel: bool = False) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True)
        self.port = choose_port(None)
        self.log = directory / "valkey.log"
        self._arguments = ["--sentinel"] if sentinel else []
        self._configuration = directory / "valkey.conf"
        own = {"bind": LOOPBACK, "port": str(self.port), "dir": f'"{directory}"', "requirepass": password}
        self._configuration.write_text("".join(f"{name} {value}\n" for name, value in {**own, **settings}.items()))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Does not wait until it answers."""
        if self.alive:
            return
        account = Account(name="", uid=os.geteuid(), gid=os.getegid())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(valkey_binary(self.directory, account=account)), str(self._configuration), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )

    def kill(self) -> None:
        """kill -9; connections are refused when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.alive:
            assert self._process is not None
            self._process.send_signal(signal.SIGCONT)


def replicating(password: str) -> dict[str, str]:
    """The settings of a server that is a primary or a replica of one with the same password, and changes places."""
    return {"primaryauth": password, "repl-diskless-sync-delay": "0"}


def watching(
    service: str, primary_port: int, *, password: str, down_after_ms: int, failover_timeout_ms: int
) -> dict[str, str]:
    """The settings of one of three Sentinels: two of them must hold the primary for dead."""
    return {
        f"sentinel monitor {service}": f"{LOOPBACK} {primary_port} 2",
        f"sentinel auth-pass {service}": password,
        f"sentinel down-after-milliseconds {service}": str(down_after_ms),
        f"sentinel failover-timeout {service}": str(failover_timeout_ms),
        "sentinel sentinel-pass": password,
    }


def sentinel_url(service: str, addresses: Sequence[str], *, password: str) -> str:
    """What `REDIS_CACHE_URL` is for a service whose servers and Sentinels have one password."""
    return f"redis+sentinel://:{password}@{','.join(addresses)}/{service}/0?sentinel_password={password}"


def die_with_parent() -> None:
    """In a child, before it becomes another program: kill -9 when the thread that made it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
