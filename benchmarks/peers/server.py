"""A peer's server as a process of its own, asked by the same client as this project's."""

import http.client
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from benchmarks.contest import BenchmarkFailed, Side
from benchmarks.http_load import throughput
from benchmarks.score_service import HOST, THREADS, end, tail
from mlserve.settings import env

_T = TypeVar("_T")
_COMPARED = 20
_START_S = 120.0
"""Feast imports for some ten seconds on a busy machine."""


def peer_environment(folder: Path) -> dict[str, str]:
    """A home of its own and none of this project's code; one thread for a row, more would only wait for each other."""
    return env.child_environment(HOME=str(folder), PYTHONPATH="", OMP_NUM_THREADS="1")


def run_once(
    name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], patience_s: float
) -> None:
    """A command of a peer that ends. Raises BenchmarkFailed if it fails or takes too long."""
    log = folder / "command.log"
    with log.open("wb") as out:
        try:
            subprocess.run(
                command,
                cwd=folder,
                env=dict(environment),
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=patience_s,
                check=True,
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise BenchmarkFailed(f"peers: {name} cannot be set up: {error}\n{tail(log)}") from error


@contextmanager
def running(
    name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], port: int, ready: str
) -> Iterator[None]:
    """Runs in `folder` until the end of the block. `ready`: the path that answers 200 as soon as it can serve."""
    log = folder / "server.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=out, stderr=subprocess.STDOUT) as server,
    ):
        try:
            deadline = time.monotonic() + _START_S
            while not _answers(port, ready):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkFailed(f"peers: {name} does not begin:\n{tail(log)}")
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            end(server)


def _answers(port: int, path: str) -> bool:
    with (
        suppress(OSError, http.client.HTTPException),
        closing(http.client.HTTPConnection(HOST, port, timeout=5)) as connection,
    ):
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    return False


def in_requests(rows: Sequence[_T], *, size: int) -> list[list[_T]]:
    """`rows` by `size`, in their order; where the last request has too few, it goes on with the first rows."""
    return [[rows[number % len(rows)] for number in range(first, first + size)] for first in range(0, len(rows), size)]


def some_of(requests: Sequence[_T]) -> Sequence[_T]:
    """Those whose answers are compared: at least twenty, over all of them, or all where there are fewer."""
    return requests[:: max(1, len(requests) // _COMPARED)]


def side(port: int, requests: Sequence[bytes], *, size: int) -> Side:
    """The requests by turns, over as many connections as scores are asked for: rows a second, `size` in each."""
    numbers = count()

    def next_request(_connection: int) -> bytes:
        return requests[next(numbers) % len(requests)]

    def measure(seconds: float) -> float:
        return throughput(HOST, port, connections=THREADS, seconds=seconds, next_request=next_request) * size

    return measure
