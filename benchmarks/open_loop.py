"""Requests over HTTP at a rate that does not depend on the answers: what a service meets when it is too slow.

A closed loop asks again when it was answered, so it slows down with the server and never overloads it. Here every
request has its moment; it is sent then, over whichever connection is free, and its time counts from that moment: what
waits for its turn behind a slow answer is not left out (coordinated omission; G. Tene, "How NOT to Measure Latency",
2015, and his wrk2). One thread with non-blocking sockets, which reads no more of an answer than its status and its
length.
"""

import errno
import selectors
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from time import perf_counter, thread_time

from benchmarks.contest import BenchmarkFailed

CONNECTIONS = 400
"""Fewer than a web process accepts. At 10,000 requests a second, each may take 40 ms before one has to wait."""
_CONNECT_S = 10.0
_DRAIN_S = 3.0
"""For the answers that are under way when the time is over."""
_LENGTH = b"content-length:"
_MOST_AT_ONCE = 50
"""Sent before answers are looked at again."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Of one run. Times are in seconds, from the moment at which a request was due."""

    offered: int = 0
    answered_s: list[float] = field(default_factory=list)
    """Of the answers with status 200."""
    refused_s: list[float] = field(default_factory=list)
    """Of those with 503 or 429."""
    failed: int = 0
    """Answers with another status, and requests that got none."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of a processor, for asking: on a small machine it is taken from the service."""


class _Connection:
    __slots__ = ("due", "received", "socket")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=_CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.due = 0.0


class OpenLoop:
    """Connections that are kept from run to run."""

    def __init__(self, host: str, port: int, *, connections: int = CONNECTIONS) -> None:
        self._address = host, port
        self._selector = selectors.DefaultSelector()
        self._free: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        for _ in range(connections):
            self._connect()

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def run(
        self, *, rate_per_s: float, seconds: float, next_request: Callable[[], bytes], random: Random | None = None
    ) -> Outcome:
        """Raises BenchmarkFailed if a connection breaks, or if there were too few to send at the rate.

        Requests are due one after the other at equal distances; with `random`, at those of a Poisson process, as
        clients that know nothing of each other ask.
        """
        outcome = Outcome()
        self._receive(outcome, 0.0)
        started, cpu_began = perf_counter(), thread_time()
        due_at = started
        while (now := perf_counter()) < started + seconds:
            sent = 0
            while due_at <= now and sent < _MOST_AT_ONCE and self._free:
                self._send(next_request(), due_at)
                due_at += random.expovariate(rate_per_s) if random else 1 / rate_per_s
                sent += 1
            outcome.offered += sent
            self._receive(outcome, 0.0 if sent else min(0.001, max(0.0, due_at - now)))
        outcome.seconds, outcome.cpu_s = perf_counter() - started, thread_time() - cpu_began
        while self._busy and perf_counter() < started + seconds + _DRAIN_S:
            self._receive(outcome, 0.05)
        outcome.failed += len(self._busy)
        if self._busy:
            raise BenchmarkFailed(f"overload: {len(self._busy)} requests got no answer within {_DRAIN_S:g} s")
        return outcome

    def _connect(self) -> None:
        connection = _Connection(*self._address)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._free.append(connection)

    def _send(self, request: bytes, due: float) -> None:
        connection = self._free.popleft()
        connection.due = due
        self._busy.add(connection)
        try:
            sent = connection.socket.send(request)
        except OSError as error:
            raise BenchmarkFailed(f"overload: a connection broke: {error}") from error
        if sent < len(request):
            raise BenchmarkFailed("overload: the server does not read what it is sent")

    def _receive(self, outcome: Outcome, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            connection: _Connection = key.data
            try:
                chunk = connection.socket.recv(65_536)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                    continue
                raise BenchmarkFailed(f"overload: a connection broke: {error}") from error
            if not chunk:
                if connection in self._busy:
                    raise BenchmarkFailed("overload: the server closed a connection instead of answering")
                # It had been idle for longer than the server keeps one.
                self._selector.unregister(connection.socket)
                connection.socket.close()
                self._free.remove(connection)
                self._connect()
                continue
            connection.received += chunk
            if _is_whole(connection.received):
                self._note(outcome, connection)

    def _note(self, outcome: Outcome, connection: _Connection) -> None:
        took_s = perf_counter() - connection.due
        status = connection.received[9:12]
        if status == b"200":
            outcome.answered_s.append(took_s)
        elif status in (b"503", b"429"):
            outcome.refused_s.append(took_s)
        else:
            outcome.failed += 1
        connection.received = b""
        self._busy.discard(connection)
        self._free.append(connection)


def _is_whole(received: bytes) -> bool:
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = received[:end].lower()
    at = head.find(_LENGTH)
    length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return len(received) >= end + 4 + length
