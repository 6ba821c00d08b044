"""How things are called in the cache. One key names one feature group of one entity, or one prediction.

In Redis an entity's groups are the fields of one hash. Hash, lease and (per partition) watermark carry the partition as
their hash tag, so that they lie in one slot of a Cluster and one script can see them together.
"""

from base64 import urlsafe_b64encode
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

import msgspec

LAYOUT = 2
"""Rises when the layout of records in Redis changes; older records are then out of reach and expire."""
PREDICTION = "prediction"
"""The kind of keys that name all that their value was computed from; nothing ever withdraws it."""
_PREFIX = b"ml%d" % LAYOUT
_NAMES_KEPT = 65_536


class Key(msgspec.Struct, frozen=True, gc=False, order=True, cache_hash=True):
    """`kind` is the entity type (or `prediction`), `id` the entity's id, `group` the feature group (or model name)."""

    kind: str
    id: str
    group: str

    @property
    def entity(self) -> tuple[str, str]:
        """Keys with the same one lie in one hash."""
        return self.kind, self.id


class EntityNames(msgspec.Struct, frozen=True, gc=False):
    """What one entity is called in Redis. `digest`: 16 bytes of kind and id."""

    digest: bytes
    partition: int
    record: bytes
    lease: bytes
    watermark: bytes


@lru_cache(_NAMES_KEPT)
def names_of(kind: str, entity_id: str, partitions: int, replica: int = 0) -> EntityNames:
    """The names in the entity's partition, one of `partitions`, or in that of its `replica`th copy (0: its own).

    The digest keeps names short and of one length, and lets ids hold any character.
    """
    digest = blake2b(f"{len(kind)}:{kind}:{entity_id}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    partition = (int.from_bytes(digest[:4], "big") + replica * _stride(partitions)) % partitions
    text = urlsafe_b64encode(digest).rstrip(b"=")
    return EntityNames(
        digest,
        partition,
        record=b"%b:{%d}:v:%b" % (_PREFIX, partition, text),
        lease=b"%b:{%d}:l:%b" % (_PREFIX, partition, text),
        watermark=b"%b:{%d}:wm" % (_PREFIX, partition),
    )


def _stride(partitions: int) -> int:
    """Replicas lie far apart: neighbouring partitions tend to share a node."""
    return max(1, partitions // 3)


@lru_cache(_NAMES_KEPT)
def life_share(key: Key) -> float:
    """How much of the policy's limit a copy of this key lives for: above 0.9 and at most 1, the same in every process.

    Without this jitter, copies that were written together (a warm-up, a rebuild) expire together, and the source gets
    all their reloads at once. It only ever shortens.
    """
    return 1.0 - JITTER_SHARE * crc32(f"{key.kind}\x1f{key.id}\x1f{key.group}".encode("utf-8", "surrogatepass")) / 2**32


JITTER_SHARE = 0.1
"""Spread over this share of the limit. Reloads per second then peak at about their mean over that stretch."""
