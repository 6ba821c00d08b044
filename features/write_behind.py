"""Counts what is worth counting but not worth a write: the process's side of the groups that are written behind.

A score adds to numbers in memory, which takes about a microsecond and cannot fail. Once a second a thread takes what
has come together, one delta per merchant, and appends it as one batch to a stream on the broker's Redis, which does
not evict. A worker brings the batches into Postgres (`flush.py`).

That is for data where order does not matter (sums and maxima commute) and where a loss is bearable: a process that is
killed takes its last second with it. What is never lost for want of a server: while the broker is away, or the stream
is full because no worker flushes it, deltas stay here and go on adding up. Memory is bounded by the number of
merchants, not by time.

A batch keeps its id however often it is appended, because an append whose answer was lost may have worked. The worker
counts each id once.
"""

import os
import threading
from multiprocessing.util import Finalize
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
import redis
import structlog

from mlserve.cache.clock import Clock, SystemClock
from mlserve.console.figures import broker_client
from mlserve.observability import metrics
from mlserve.poller import Poller

_log = structlog.get_logger(__name__)
STREAM = "mlserve:write-behind"
FIELD = "batch"
APPEND_EVERY_S = 1.0
MERCHANTS_PER_BATCH = 500
"""Some 40 kB: what the broker takes, and a worker reads back, well within one timeout."""
MOST_MERCHANTS = 10_000
"""Kept per process. Scores of further ones are dropped and counted until the next append makes room."""
MOST_BATCHES = 2_000
"""In the stream, over all processes. A full one is left alone: what does not fit adds up in the processes."""


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one merchant's scores of a while add up to. `last_at` in seconds since 1970."""

    merchant_id: Annotated[str, msgspec.Meta(pattern=r"^(?!\.+\Z)[A-Za-z0-9._:-]{1,64}\Z")]
    scores: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
    amount: Annotated[float, msgspec.Meta(ge=0, le=1e15)]
    last_at: Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Appended and flushed as one. Whoever meets an id for the second time has counted it."""

    id: UUID
    deltas: Annotated[tuple[Delta, ...], msgspec.Meta(min_length=1, max_length=MERCHANTS_PER_BATCH)]


_encode = msgspec.msgpack.Encoder().encode


class Buffer:
    """Of one process. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sums: dict[str, list[float]] = {}
        """Merchant to number of scores, amount, newest moment."""
        self._taken: list[bytes] = []
        """Batches on their way: in the stream as soon as the broker says so, not before."""
        self._dropped = 0
        self._client: redis.Redis | None = None
        self._at_exit: Finalize | None = None
        self.poller = Poller("write-behind", APPEND_EVERY_S, self._append)

    def start(self) -> None:
        """Appends from now on, and once more when the process ends; cheap enough for every score."""
        self.poller.ensure_started()
        if self._at_exit is None:
            # Not atexit: a web server's worker is a fork, which ends without it. Of kill -9 nobody hears.
            self._at_exit = Finalize(None, self._append_finally, exitpriority=1)

    def note(self, merchant_id: str, amount: float, at: float) -> None:
        with self._lock:
            sums = self._sums.get(merchant_id)
            if sums is not None:
                sums[0] += 1
                sums[1] += amount
                if at > sums[2]:
                    sums[2] = at
            elif len(self._sums) < MOST_MERCHANTS:
                self._sums[merchant_id] = [1, amount, at]
            else:
                self._dropped += 1

    def has_something(self) -> bool:
        """Whether anything was counted that the stream does not have."""
        return bool(self._sums or self._taken)

    def close(self) -> None:
        """Stops appending. What is still here stays here."""
        self.poller.stop()
        if self._at_exit is not None:
            self._at_exit.cancel()
        if self._client is not None:
            self._client.close()

    def _append_finally(self) -> None:
        self.poller.stop()
        try:
            self.poller.poll_now()
        except redis.RedisError as error:
            _log.warning("write_behind_lost", error=f"{type(error).__name__}: {error}")

    def _append(self) -> None:
        """Appends what has come together, unless the stream is full. Raises RedisError; then nothing is lost."""
        if self._client is None:
            self._client = broker_client()
        self._publish_dropped()
        looking = self._client.pipeline(transaction=False)
        looking.xlen(STREAM)
        looking.xrange(STREAM, count=1)
        waiting, oldest = looking.execute()
        metrics.WRITE_BEHIND_LAG.set(self._age_s(oldest[0][0]) if oldest else 0.0)
        if not self._taken:
            self._taken = self._take()
        # One at a time, so that a timeout leaves at most one batch of which nobody knows whether it arrived.
        while self._taken and waiting < MOST_BATCHES:
            self._client.xadd(STREAM, {FIELD: self._taken[0]})
            del self._taken[0]
            waiting += 1
            metrics.WRITE_BEHIND_APPENDED.inc()

    def _take(self) -> list[bytes]:
        with self._lock:
            sums, self._sums = self._sums, {}
        deltas = [Delta(merchant_id, int(of[0]), of[1], of[2]) for merchant_id, of in sums.items()]
        parts = (deltas[start : start + MERCHANTS_PER_BATCH] for start in range(0, len(deltas), MERCHANTS_PER_BATCH))
        return [_encode(Batch(uuid4(), tuple(part))) for part in parts]

    def _publish_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            metrics.WRITE_BEHIND_DROPPED.labels("buffer_full").inc(dropped)

    def _age_s(self, entry_id: bytes) -> float:
        return max(0.0, self._clock.now() - int(entry_id.partition(b"-")[0]) / 1000)


_buffer = Buffer(SystemClock())


def note_score(*, merchant_id: str, amount: float, at: float) -> None:
    """Counts a score that was given at `at` (seconds since 1970). Never waits for a server and never fails."""
    buffer = _buffer
    buffer.start()
    buffer.note(merchant_id, amount, at)


def append_now() -> None:
    """Appends at once what this process has counted. Raises RedisError; then it is kept for the next append."""
    _buffer.poller.poll_now()


def forget() -> None:
    """Stops appending and drops what was counted; the next `note_score` begins anew."""
    global _buffer
    _buffer.close()
    _buffer = Buffer(SystemClock())


def _forget_after_fork() -> None:
    # What was counted before the fork is the parent's to append.
    global _buffer
    _buffer = Buffer(SystemClock())


os.register_at_fork(after_in_child=_forget_after_fork)
