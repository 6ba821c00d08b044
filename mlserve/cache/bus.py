"""What a partition's stream in Redis says: one message for each batch, and what operators tell every process.

    held, following, changed    a batch took the partition from one watermark to the next (`lua/batch.lua`)
    withdrawn, by               copies that must go whatever their version, and which process says so
    asked, keys                 the inspector's question what each process holds (`inquiry.py`)

Whoever can write to Redis can write messages too. One that cannot be read is a gap, after which a process holds
nothing; one that is well formed and false is believed, as a false watermark would be.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mlserve.cache.chain import Message
from mlserve.cache.inquiry import Question, read_question
from mlserve.cache.keys import LAYOUT, Key
from mlserve.cache.seal import NO_SEAL, Seal
from mlserve.cache.watermark import parse

MOST_MESSAGES = 600
"""Half a minute of an idle relay, and at most some ten megabytes. Who was away for longer begins anew."""
UNREADABLE = Message(b"", b"", None)
_encoder = msgspec.msgpack.Encoder()
_changes = msgspec.msgpack.Decoder(list[tuple[str, str, list[tuple[bytes, bytes]]]])
_withdrawn = msgspec.msgpack.Decoder(list[tuple[str, str, str]])
Withdrawn = tuple[Key, ...]


def name_of(partition: int) -> bytes:
    """The stream's key in Redis, in one slot with the partition's watermark."""
    return b"ml%d:{%d}:bus" % (LAYOUT, partition)


def pack_changes(changes: Iterable[tuple[tuple[str, str], Sequence[tuple[bytes, bytes]]]]) -> bytes:
    """Per entity: its groups, each with the version (8 bytes) that was committed."""
    told = [(*entity, versions) for entity, versions in changes]
    return _encoder.encode(told) if told else b""


def pack_withdrawn(keys: Iterable[Key]) -> bytes:
    return _encoder.encode([(key.kind, key.id, key.group) for key in keys])


def read(
    fields: Any, *, watermark_name: bytes = b"", seal: Seal = NO_SEAL, reader: bytes = b""
) -> Message | Withdrawn | Question:
    """A message from the fields and values of an entry of the stream; `UNREADABLE` if they are none of ours.

    What the `reader` has withdrawn itself is nothing new to it.
    """
    try:
        held = dict(zip(fields[::2], fields[1::2], strict=True))
        if b"withdrawn" in held:
            if reader and held.get(b"by") == reader:
                return ()
            return tuple(Key(*names) for names in _withdrawn.decode(held[b"withdrawn"]))
        if b"asked" in held:
            return read_question(held[b"asked"], held[b"keys"]) or ()
        changed = seal.open_message(held[b"changed"], held[b"held"], held[b"following"])
        if changed is None:
            return UNREADABLE
        changes = [
            (Key(kind, entity_id, group.decode()), int.from_bytes(version, "big"))
            for kind, entity_id, groups in (_changes.decode(changed) if changed else ())
            for group, version in groups
        ]
        promised = parse(held[b"following"], watermark_name, seal)
        return Message(held[b"held"], held[b"following"], promised, changes)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return UNREADABLE
