"""What a process is asked over the bus, and what it answers: which copies its memory holds, and who vouches for them.

The inspector asks (`features/inspection`); every process that follows a partition's stream answers into a list of that
question's own, which expires. Nobody waits for anybody: who does not answer in time is not counted.

Whoever can write to Redis can ask, and can answer. A question is bounded in size; an answer that cannot be read is left
out; a false one can make the inspector drop copies that were good, or overlook one.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from math import isfinite
from struct import pack
from typing import Any

import msgspec

from mlserve.cache.entry import Entry
from mlserve.cache.keys import LAYOUT, Key

MOST_KEYS = 500
"""Of one question; a process looks them up in less than a millisecond."""
MOST_ANSWER_BYTES = 1_000_000
ANSWERS_KEPT_MS = 10_000
DIGEST_BYTES = 16
_encoder = msgspec.msgpack.Encoder()
_keys = msgspec.msgpack.Decoder(list[tuple[str, str, str]])
_ID_BYTES = 32
_HEX = frozenset(b"0123456789abcdef")


class Question(msgspec.Struct, frozen=True):
    """`id`: 32 hexadecimal digits, which name the list of the answers."""

    id: bytes
    keys: tuple[Key, ...]


class HeldCopy(msgspec.Struct, frozen=True, array_like=True):
    """One copy in a process's memory. Moments in seconds since 1970; `digest` of the values, `digest_of`."""

    kind: str
    id: str
    group: str
    version: int
    as_of: float
    written_at: float
    vouched_at: float
    negative: bool
    digest: bytes

    @property
    def key(self) -> Key:
        return Key(self.kind, self.id, self.group)

    def as_entry(self) -> Entry:
        """For a verdict on its age: as the process has it, but without the values."""
        return Entry(
            self.version, self.as_of, self.written_at, None if self.negative else (), vouched_at=self.vouched_at
        )


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`process` is a name for people; `at`: by its clock, when it looked."""

    process: str
    at: float
    held: list[HeldCopy]


_answer = msgspec.msgpack.Decoder(Answer)


def answers(
    peek: Callable[[Key], Entry | None], keys: Iterable[Key], *, vouched_of: Callable[[Key], float]
) -> list[HeldCopy]:
    """The copies of `keys` that are held, judged by nobody; leaves no trace in the memory.

    `vouched_of`: up to when what is heard of L2's batches vouches for a copy that somebody vouched for (`chain.py`).
    """
    found = []
    for key in keys:
        vouched_at = vouched_of(key)  # before the look: what is heard after it says nothing about what is found
        entry = peek(key)
        if entry is None:
            continue
        if 0.0 < entry.vouched_at < vouched_at:
            entry = msgspec.structs.replace(entry, vouched_at=vouched_at)
        found.append(
            HeldCopy(
                key.kind,
                key.id,
                key.group,
                entry.version,
                entry.as_of,
                entry.written_at,
                entry.vouched_at,
                entry.values is None,
                digest_of(entry.values),
            )
        )
    return found


def digest_of(values: Sequence[float] | None) -> bytes:
    """Equal for equal numbers to the last bit, and for "nothing there"."""
    if values is None:
        return bytes(DIGEST_BYTES)
    return blake2b(pack(f"<{len(values)}d", *values), digest_size=DIGEST_BYTES).digest()


def list_of(partition: int, question_id: bytes) -> bytes:
    """The key in Redis of the list of a question's answers, in one slot with the stream that it was asked in."""
    return b"ml%d:{%d}:answers:%b" % (LAYOUT, partition, question_id)


def pack_keys(keys: Iterable[Key]) -> bytes:
    return _encoder.encode([(key.kind, key.id, key.group) for key in keys])


def read_question(question_id: bytes, keys: bytes) -> Question | None:
    """None if it is none of ours, or asks for more than a process answers."""
    if len(question_id) != _ID_BYTES or not _HEX.issuperset(question_id):
        return None
    try:
        names = _keys.decode(keys)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Question(question_id, tuple([Key(*each) for each in names])) if len(names) <= MOST_KEYS else None


def pack_answer(answer: Answer) -> bytes:
    return _encoder.encode(answer)


def read_answer(reply: Any) -> Answer | None:
    """None if these bytes are no answer, or one with a moment or a version that no process would tell."""
    if not isinstance(reply, bytes) or len(reply) > MOST_ANSWER_BYTES:
        return None
    try:
        answer = _answer.decode(reply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return answer if isfinite(answer.at) and all(map(_is_possible, answer.held)) else None


def _is_possible(copy: HeldCopy) -> bool:
    moments = (copy.as_of, copy.written_at, copy.vouched_at)
    return 0 <= copy.version < 2**64 and all(map(isfinite, moments))
