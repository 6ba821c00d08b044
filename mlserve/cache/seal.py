"""Tells our own records and watermarks in Redis from those of somebody else who can write there too.

Behind each stands a keyed digest (BLAKE2b, 128 bits) of all of its bytes and of its place: entity and group of a
record, the name of a watermark's key. One that was changed, made up, or moved elsewhere is refused by every reader. The
key is a setting (`MLSERVE_CACHE_MAC_KEY`), the same in all processes; with another one everything in L2 is foreign.

What a seal does not show is that a record is the latest one: an old record, copied before it was replaced and put back
later, has a good seal, as long as its epoch and its age allow. Tombstones are written by scripts inside Redis, which
must not know the key, and have none: a forged one makes its key a miss until it expires, and never an answer.
"""

from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Protocol

MAC_BYTES = 16
_HEX_BYTES = 2 * MAC_BYTES


class Seal(Protocol):
    """`keyed` is False where nothing is sealed; callers may then leave out the calls."""

    keyed: bool

    def __hash__(self) -> int: ...

    def seal_record(self, record: bytes, digest: bytes, group: str, /) -> bytes:
        """The record with its seal behind it. `digest`: the 16 bytes of the entity's names."""
        ...

    def open_record(self, sealed: bytes, digest: bytes, group: str, /) -> bytes | None:
        """The record without its seal; None if that is missing or not this key's, for this place."""
        ...

    def seal_watermark(self, text: bytes, name: bytes, /) -> bytes:
        """The watermark with its seal as a last field, in hexadecimal digits. `name`: of its key in Redis."""
        ...

    def open_watermark(self, sealed: bytes, name: bytes, /) -> bytes | None: ...

    def seal_message(self, changed: bytes, held: bytes, following: bytes, /) -> bytes:
        """What a batch changed with its seal behind it, for the step between these two watermarks."""
        ...

    def open_message(self, sealed: bytes, held: bytes, following: bytes, /) -> bytes | None: ...


class KeyedSeal:
    """Thread-safe."""

    keyed = True

    def __init__(self, secret: str) -> None:
        key = blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=64).digest()
        # A byte behind the key makes the digest take in the key's block here, once, and not again for each copy. It
        # keeps the kinds apart as well.
        self._records = blake2b(b"\1", key=key, digest_size=MAC_BYTES)
        self._watermarks = blake2b(b"\2", key=key, digest_size=MAC_BYTES)
        self._messages = blake2b(b"\3", key=key, digest_size=MAC_BYTES)

    def seal_record(self, record: bytes, digest: bytes, group: str, /) -> bytes:
        hashed = self._records.copy()
        hashed.update(digest + _framed(group))
        hashed.update(record)
        return record + hashed.digest()

    def open_record(self, sealed: bytes, digest: bytes, group: str, /) -> bytes | None:
        record = sealed[:-MAC_BYTES]
        hashed = self._records.copy()
        hashed.update(digest + _framed(group))
        hashed.update(record)
        return record if compare_digest(hashed.digest(), sealed[-MAC_BYTES:]) else None

    def seal_watermark(self, text: bytes, name: bytes, /) -> bytes:
        return b"%b|%b" % (text, self._of_watermark(text, name))

    def open_watermark(self, sealed: bytes, name: bytes, /) -> bytes | None:
        text, bar, mac = sealed[: -_HEX_BYTES - 1], sealed[-_HEX_BYTES - 1 : -_HEX_BYTES], sealed[-_HEX_BYTES:]
        return text if bar == b"|" and compare_digest(self._of_watermark(text, name), mac) else None

    def _of_watermark(self, text: bytes, name: bytes) -> bytes:
        hashed = self._watermarks.copy()
        hashed.update(b"%d:%b" % (len(name), name))
        hashed.update(text)
        return hashed.hexdigest().encode()

    def seal_message(self, changed: bytes, held: bytes, following: bytes, /) -> bytes:
        return changed + self._of_message(changed, held, following)

    def open_message(self, sealed: bytes, held: bytes, following: bytes, /) -> bytes | None:
        changed = sealed[:-MAC_BYTES]
        return changed if compare_digest(self._of_message(changed, held, following), sealed[-MAC_BYTES:]) else None

    def _of_message(self, changed: bytes, held: bytes, following: bytes) -> bytes:
        hashed = self._messages.copy()
        # With the partition's name in it: the seal of what follows.
        hashed.update(b"%d:%b%d:%b" % (len(held), held, len(following), following))
        hashed.update(changed)
        return hashed.digest()


class NullSeal:
    """Adds nothing and believes everything."""

    keyed = False

    def seal_record(self, record: bytes, digest: bytes, group: str, /) -> bytes:
        return record

    def open_record(self, sealed: bytes, digest: bytes, group: str, /) -> bytes | None:
        return sealed

    def seal_watermark(self, text: bytes, name: bytes, /) -> bytes:
        return text

    def open_watermark(self, sealed: bytes, name: bytes, /) -> bytes | None:
        return sealed

    def seal_message(self, changed: bytes, held: bytes, following: bytes, /) -> bytes:
        return changed

    def open_message(self, sealed: bytes, held: bytes, following: bytes, /) -> bytes | None:
        return sealed


NO_SEAL = NullSeal()


def make_seal(secret: str) -> Seal:
    """Without a secret: none."""
    return KeyedSeal(secret) if secret else NO_SEAL


@lru_cache(4096)
def _framed(group: str) -> bytes:
    """With its length, so that no byte can pass from the group to the record."""
    encoded = group.encode("utf-8", "surrogatepass")
    return b"%d:%b" % (len(encoded), encoded)
