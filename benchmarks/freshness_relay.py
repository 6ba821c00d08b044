"""A relay as it runs beside the service, which a benchmark may stop for a while."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contest import BenchmarkFailed
from mlserve.settings import env

_STOP_S = 10.0


class RelayProcess:
    """`manage.py relay`."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def pause(self) -> None:
        """SIGSTOP: nobody vouches for anything from now on, and nobody is told of a change."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on from the watermark that it left; whoever needs it waits until it has caught up."""
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        if self._process.poll() is not None:
            raise BenchmarkFailed(f"the relay has ended with exit code {self._process.returncode}")
        os.kill(self._process.pid, number)


@contextmanager
def relay_process(*, environment: Mapping[str, str], log: Path) -> Iterator[RelayProcess]:
    """Runs until the end of the block. It may still be starting when the block begins."""
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, str(env.BASE_DIR / "manage.py"), "relay"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield RelayProcess(process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
