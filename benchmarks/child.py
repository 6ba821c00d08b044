"""A process of a benchmark's own that is talked to in lines of JSON."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contest import BenchmarkFailed

_STOP_S = 10.0


class Child:
    """`python -m MODULE`: a line in, a line out."""

    def __init__(self, process: "subprocess.Popen[bytes]", name: str, log: Path) -> None:
        self._process = process
        self._name = name
        self._log = log

    def tell(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed() from error

    def hear(self) -> Any:
        """The next line. Raises BenchmarkFailed if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        return msgspec.json.decode(line)

    def ask(self, message: Any) -> Any:
        self.tell(message)
        return self.hear()

    def _failed(self) -> BenchmarkFailed:
        lines = self._log.read_text("utf-8", "replace").splitlines()[-15:]
        return BenchmarkFailed(f"{self._name} has ended:\n{os.linesep.join(lines)}")


@contextmanager
def child(module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> Iterator[Child]:
    """Runs until the end of the block; its end of input tells it to go."""
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        try:
            yield Child(process, module, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def say(message: Any) -> None:
    """For the child: a line to the benchmark."""
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()


def told() -> Iterator[Any]:
    """For the child: what the benchmark says, until it is done."""
    for line in sys.stdin:
        yield msgspec.json.decode(line)
