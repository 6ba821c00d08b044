"""What this process has heard of L2's batches, so that copies in its own memory are as well vouched for as those of L2.

Each batch that moves a partition's watermark on (`lua/batch.lua`) leaves a message in that partition's stream: from
which watermark, to which one, what changed in between. A process that follows the stream without a gap has dropped all
that changed up to the last watermark it heard of; so everything that is left in its memory is as new as that watermark
says. Nobody promises that a message arrives. What is checked is that each one continues the one before.

Four guards hold that together. Take one away, and there is an order of events after which an old copy stays:

1. Gap flush: a message that does not continue the last one means that others are missing. All copies of the partition
   go. So do they with a new epoch.
2. Pending drop: a fill that was under way at a gap is refused too: what it read may be what the gap withdrew.
3. Ring: a fill that began before a message which names its key, with a newer version, is refused. What was named
   lately is remembered; who began before that memory does is refused as well.
4. Watermark check: what L2 says counts only if its watermark covers what was heard before it was asked
   (`tiers/l2_redis.py`). Otherwise L2 has failed over to an older history, and holds copies that were withdrawn.

Where nothing is heard for `SILENCE_S` nothing is vouched for: the stream may be out of reach.
(FRESHNESS, section 7: there one stream for all partitions; here one for each, written by the batch itself, so that
stream and watermark cannot part in a failover.)
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from mlserve.cache.clock import Clock
from mlserve.cache.keys import Key
from mlserve.cache.watermark import MOST_AHEAD_S, Watermark

SILENCE_S = 0.5
"""Ten ticks of a relay."""
RING_KEYS = 20_000
"""Named keys that are remembered, of each partition. Fills take milliseconds; more than this many changes in that time
make them lose their place in L1, nothing worse."""
PATIENCE_S = 0.005
"""A request does not wait for a gap's flush to end; its copies go without L1."""
NEVER_BEGUN = -1
"""The position of whoever has none: what it brings is taken only by a process that follows no stream."""
UNCONDITIONAL = 2**63
"""Above every version: of a copy that must go whatever it is, and of fills that may be about to bring it again."""


class Memory(Protocol):
    """The copies that are vouched for."""

    def drop_older(self, key: Key, version: int, /) -> None:
        """Unless the held copy has this version or a larger one."""
        ...

    def drop_all(self, is_concerned: Callable[[Key], bool], /) -> None: ...


class Refusal(StrEnum):
    """Why a copy was not taken into L1."""

    GAP = "gap"
    NAMED = "named"
    FORGOTTEN = "forgotten"
    BUSY = "busy"


class Message(msgspec.Struct, frozen=True):
    """Of one batch: it took the partition from the watermark `held` to `following` (their bytes)."""

    held: bytes
    following: bytes
    promised: Watermark | None
    """What `following` says; None: nothing that can be read."""
    changes: Sequence[tuple[Key, int]] = ()


class Head(msgspec.Struct, frozen=True):
    """How far a partition has been followed. `promised` is None at the beginning and after what cannot be read."""

    held: bytes | None = None
    promised: Watermark | None = None


class _Followed:
    """What is known of one partition. `gap_at` and `floor` are positions."""

    def __init__(self) -> None:
        self.gap_at = NEVER_BEGUN
        self.floor = NEVER_BEGUN
        self.named: dict[Key, tuple[int, int]] = {}
        self.ring: deque[tuple[int, Key]] = deque()
        self.safe_time = 0.0
        self.heard_at = float("-inf")


class Chain:
    """Of one process, over its memory. Thread-safe. `partition_of` is None for keys that no batch ever names.

    `vouched_at` (s since 1970): the memory has lost everything that was changed by a commit acknowledged before it, in
    every partition; 0 where nobody can say so. To be read *before* the copy that it is to vouch for: a message may come
    in between, take the copy away and move this on.
    """

    def __init__(
        self, memory: Memory, *, partitions: int, partition_of: Callable[[Key], int | None], clock: Clock
    ) -> None:
        self.vouched_at = 0.0
        self.heads: tuple[Head, ...] = (Head(),) * partitions
        """One per partition; replaced as a whole, so that whoever keeps it has what was heard until then."""
        self.gaps = 0
        self.refused: Counter[Refusal] = Counter()
        self._memory = memory
        self._partition_of = partition_of
        self._clock = clock
        self._lock = threading.RLock()
        self._followed = [_Followed() for _ in range(partitions)]
        self._position = 0

    # --- filling ---

    def begin(self) -> int:
        """The position of a fill, to be taken before anything is read that it will bring."""
        return self._position

    def admit(self, key: Key, version: int, since: int, put: Callable[[], None]) -> Refusal | None:
        """Calls `put` unless what was read since the position `since` may be out of date; both are one step."""
        partition = self._partition_of(key)
        if partition is None:
            put()
            return None
        if not self._lock.acquire(timeout=PATIENCE_S):
            refusal: Refusal | None = Refusal.BUSY
        else:
            try:
                refusal = self._refusal(self._followed[partition], key, version, since)
                if refusal is None:
                    put()
            finally:
                self._lock.release()
        if refusal is not None:
            self.refused[refusal] += 1
        return refusal

    def _refusal(self, followed: _Followed, key: Key, version: int, since: int) -> Refusal | None:
        if since < followed.gap_at:
            return Refusal.GAP
        if since < followed.floor:
            return Refusal.FORGOTTEN
        named_at, newest = followed.named.get(key, (NEVER_BEGUN, 0))
        return Refusal.NAMED if since < named_at and version < newest else None

    # --- serving ---

    def vouched_of(self, key: Key) -> float:
        """As `vouched_at`, for the partition of this key alone."""
        partition = self._partition_of(key)
        return 0.0 if partition is None else self._followed[partition].safe_time

    # --- hearing ---

    def hear(self, partition: int, message: Message) -> bool:
        """Takes the partition one batch on. False if there was a gap, and so all its copies are gone."""
        with self._lock:
            head, followed, promised = self.heads[partition], self._followed[partition], message.promised
            self._position += 1
            continues = self._continues(head, message)
            if not continues:
                self._forget(partition)
            for key, version in message.changes:
                self._memory.drop_older(key, version)
                self._name(followed, key, version)
            self.heads = (
                *self.heads[:partition],
                Head(message.following if promised is not None else None, promised),
                *self.heads[partition + 1 :],
            )
            followed.heard_at = self._clock.monotonic()
            # From here on the memory is as new as the message says, and not before.
            followed.safe_time = min(promised.safe_time, self._clock.now() + MOST_AHEAD_S) if promised else 0.0
            self._sum_up()
            return continues

    def withdraw(self, keys: Iterable[Key]) -> None:
        """Drops copies whatever their version, and refuses fills of them that are under way."""
        with self._lock:
            self._position += 1
            for key in keys:
                partition = self._partition_of(key)
                self._memory.drop_older(key, UNCONDITIONAL)
                if partition is not None:
                    self._name(self._followed[partition], key, UNCONDITIONAL)

    def note_silence(self) -> None:
        """To be called often: whatever was not heard of for `SILENCE_S` is not vouched for until it is again."""
        with self._lock:
            latest = self._clock.monotonic() - SILENCE_S
            for followed in self._followed:
                if followed.heard_at < latest:
                    followed.safe_time = 0.0
            self._sum_up()

    def is_silent(self, partition: int) -> bool:
        return self._followed[partition].safe_time == 0.0

    @staticmethod
    def _continues(head: Head, message: Message) -> bool:
        return (
            head.promised is not None
            and message.promised is not None
            and message.held == head.held
            and message.promised.epoch == head.promised.epoch
        )

    def _forget(self, partition: int) -> None:
        followed = self._followed[partition]
        self._memory.drop_all(lambda key: self._partition_of(key) == partition)
        followed.gap_at = self._position
        followed.named.clear()
        followed.ring.clear()
        self.gaps += 1

    def _name(self, followed: _Followed, key: Key, version: int) -> None:
        known = followed.named.get(key)
        followed.named[key] = (self._position, max(version, known[1] if known else 0))
        followed.ring.append((self._position, key))
        while len(followed.ring) > RING_KEYS:
            position, oldest = followed.ring.popleft()
            followed.floor = position
            if followed.named.get(oldest, (NEVER_BEGUN, 0))[0] == position:
                del followed.named[oldest]

    def _sum_up(self) -> None:
        self.vouched_at = min(followed.safe_time for followed in self._followed)


class NullChain:
    """Follows nothing: whatever comes is taken, and nothing is vouched for."""

    vouched_at = 0.0
    heads: tuple[Head, ...] = ()
    gaps = 0
    refused: Counter[Refusal] = Counter()

    def begin(self) -> int:
        return NEVER_BEGUN

    def admit(self, key: Key, version: int, since: int, put: Callable[[], None]) -> Refusal | None:
        put()
        return None

    def vouched_of(self, key: Key) -> float:
        return 0.0

    def withdraw(self, keys: Iterable[Key]) -> None: ...
