"""Requests over HTTP from a few connections at once, as many as the server takes.

A client out of a library would cost as much as the server that is measured, on the same cores: this one sends bytes
that are ready and reads no more of the answer than its status and its length.
"""

import socket
from collections.abc import Callable
from threading import Barrier, Thread
from time import perf_counter, sleep

from benchmarks.contest import BenchmarkFailed

_TIMEOUT_S = 10.0
_LENGTH = b"content-length:"
_REFUSED_PAUSE_S = 0.02
_FEW_REFUSALS = 50
"""More than answers, before a server counts as one that does not serve at all."""


class Refused(BenchmarkFailed):
    """The server had too much to do."""


class Connection:
    """One connection that is kept."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """The body of the answer. Raises Refused for a 503, BenchmarkFailed for any other status but 200."""
        self._socket.sendall(request)
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = received[:end].lower()
        at = head.find(_LENGTH)
        length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        while len(received) < end + 4 + length:
            received += self._more()
        body = received[end + 4 :]
        if not head.startswith(b"http/1.1 200 "):
            failure = Refused if head.startswith(b"http/1.1 503 ") else BenchmarkFailed
            raise failure(f"score: the server answered {received[:end].splitlines()[0]!r}: {body[:500]!r}")
        return body

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> bytes:
        chunk = self._socket.recv(65_536)
        if not chunk:
            raise BenchmarkFailed("score: the server closed the connection")
        return chunk


def post(*, path: str, host: str, key: str, body: bytes) -> bytes:
    """A whole request as bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def throughput(
    host: str, port: int, *, connections: int, seconds: float, next_request: Callable[[int], bytes]
) -> float:
    """Answers a second over all connections. `next_request` gets the connection's number and must be thread-safe.

    What is refused is no answer, and its connection asks again after a pause. Raises BenchmarkFailed if any connection
    fails, or if more is refused than answered.
    """
    barrier = Barrier(connections)
    answers, spent, errors = [0] * connections, [0.0] * connections, list[Exception]()

    def work(number: int) -> None:
        try:
            connection = Connection(host, port)
            try:
                barrier.wait(_TIMEOUT_S)
                started = perf_counter()
                until = started + seconds
                refusals = 0
                while perf_counter() < until or not answers[number]:
                    try:
                        connection.ask(next_request(number))
                        answers[number] += 1
                    except Refused:
                        refusals += 1
                        if refusals > _FEW_REFUSALS + answers[number]:
                            raise
                        sleep(_REFUSED_PAUSE_S)
                spent[number] = perf_counter() - started
            finally:
                connection.close()
        except (OSError, BenchmarkFailed, RuntimeError) as error:
            barrier.abort()
            errors.append(error)

    threads = [Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        first = next((error for error in errors if isinstance(error, BenchmarkFailed)), errors[0])
        raise first if isinstance(first, BenchmarkFailed) else BenchmarkFailed(f"score: {first!r}")
    return sum(count / elapsed for count, elapsed in zip(answers, spent, strict=True))
