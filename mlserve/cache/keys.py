"""How things are called in the cache. One key names one feature group of one entity, or one prediction."""

from hashlib import blake2b

import msgspec

LAYOUT = 1
"""Rises when the layout of records in Redis changes; older records are then out of reach and expire."""
_PREFIX = f"mlserve:{LAYOUT}"


class Key(msgspec.Struct, frozen=True, gc=False, order=True):
    """`kind` is the entity type (or `prediction`), `id` the entity's id, `group` the feature group (or model name)."""

    kind: str
    id: str
    group: str


def partition_of(_kind: str, _entity_id: str) -> int:
    """The partition that an entity's record, lease and watermark share. One partition: standalone and Sentinel."""
    return 0


def redis_name(kind: str, entity_id: str) -> bytes:
    """The Redis key of an entity's hash: partition as the hash tag, then 128 bits of kind and id.

    The digest keeps names short and of one length, and lets ids hold any character.
    """
    digest = blake2b(f"{len(kind)}:{kind}:{entity_id}".encode(), digest_size=16).hexdigest()
    return f"{_PREFIX}:{{{partition_of(kind, entity_id)}}}:v:{digest}".encode()
