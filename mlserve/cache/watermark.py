"""What a partition of L2 says about itself: every change that the source had committed by then has been applied here.

    epoch|S|T|relay             or, where watermarks are sealed (`seal.py`), epoch|S|T|relay|seal

Copies of another epoch are void. S is a snapshot of Postgres, as `pg_snapshot` prints it: the invalidations of all
database transactions that are visible in it have been applied on this very history of this node. T is the moment, in
seconds since 1970 by the database's clock, before which every acknowledged commit is in S. The watermark lies in one
slot with the records that it speaks of, so a failover cannot keep the one and lose the other (FRESHNESS, section 1).

Whoever can write to Redis can write a watermark too: what is none of ours is no watermark, nor is what has no seal
where there should be one, and nothing is believed of a snapshot that Postgres would refuse.
"""

import re
from functools import lru_cache

import msgspec

from mlserve.cache.keys import LAYOUT
from mlserve.cache.seal import NO_SEAL, Seal

MOST_AHEAD_S = 0.1
"""A watermark further in the future than this (s) is not believed: somebody's clock is wrong."""
MOST_BYTES = 262_144
"""A snapshot names each transaction that was writing; this is room for twenty thousand of them."""
_LARGEST_XID = 2**64 - 1
_XIDS_IN_EPOCH = 2**32
_PATTERN = re.compile(
    rb"([0-9]{1,18})\|(([0-9]{1,20}):([0-9]{1,20}):([0-9]{1,20}(?:,[0-9]{1,20})*)?)\|([0-9]{1,11}\.[0-9]{6})"
    rb"\|([A-Za-z0-9._/-]{1,64})"
)
_KEPT_PARSED = 256
"""Every reader of one moment reads the same bytes: those of each partition, 50 ms long."""


class Watermark(msgspec.Struct, frozen=True):
    """`relay` names who wrote it and, within a batch of several parts, how many of them have been applied."""

    epoch: int
    snapshot: str
    safe_time: float
    relay: str

    @property
    def oldest_running(self) -> int:
        """Of the transactions that the snapshot does not see, the smallest number."""
        return int(self.snapshot.partition(":")[0])

    @property
    def next_xid(self) -> int:
        """Transactions from this number on had not begun to write."""
        return int(self.snapshot.split(":")[1])

    def covers(self, other: "Watermark") -> bool:
        """Whether everything that `other` promises is promised by this one too, in the same epoch or a later one."""
        if self.snapshot == other.snapshot:
            return self.epoch >= other.epoch
        (_, following, running), (_, before, then_running) = _parts_of(self.snapshot), _parts_of(other.snapshot)
        return (
            self.epoch >= other.epoch
            and following >= before
            and all(xid in then_running for xid in running if xid < before)
        )

    def pack(self, name: bytes = b"", seal: Seal = NO_SEAL) -> bytes:
        """Its bytes under the key `name`; without a seal they are the same everywhere."""
        return seal.seal_watermark(f"{self.epoch}|{self.snapshot}|{self.safe_time:.6f}|{self.relay}".encode(), name)


def name_of(partition: int) -> bytes:
    """The watermark's key in Redis."""
    return b"ml%d:{%d}:wm" % (LAYOUT, partition)


@lru_cache(_KEPT_PARSED)
def _parts_of(snapshot: str) -> tuple[int, int, frozenset[int]]:
    oldest, following, running = snapshot.split(":")
    return int(oldest), int(following), frozenset(map(int, running.split(","))) if running else frozenset()


@lru_cache(_KEPT_PARSED)
def parse(text: bytes, name: bytes = b"", seal: Seal = NO_SEAL) -> Watermark | None:
    """The watermark, or None if these bytes are none. `name`: of the key that they lie under."""
    if len(text) > MOST_BYTES:
        return None
    opened = seal.open_watermark(text, name)
    found = _PATTERN.fullmatch(opened) if opened is not None else None
    if found is None:
        return None
    epoch, snapshot, oldest, following, running, safe_time, relay = found.groups()
    if not _is_snapshot(int(oldest), int(following), [int(xid) for xid in running.split(b",")] if running else []):
        return None
    return Watermark(int(epoch), snapshot.decode(), float(safe_time), relay.decode())


def _is_snapshot(oldest: int, following: int, running: list[int]) -> bool:
    """As Postgres sees it: within bounds, in order, each once, and no number that it never gives."""
    return (
        oldest <= following <= _LARGEST_XID
        and oldest % _XIDS_IN_EPOCH != 0
        and following % _XIDS_IN_EPOCH != 0
        and running == sorted(set(running))
        and all(oldest <= xid < following for xid in running)
    )
