"""Follows the partitions' streams, so that this process hears within milliseconds what a batch has withdrawn in L2.

Asks, many times a second, for what comes after the last message. Where nothing has come for a while it asks for the
stream's own last message instead: after a failover its numbers may have gone back behind those that were read already.
Whether the message continues what was heard before is for the chain to say (`chain.py`).
"""

from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any

from mlserve.cache import bus, watermark
from mlserve.cache.bus import name_of, pack_withdrawn
from mlserve.cache.chain import Chain
from mlserve.cache.inquiry import ANSWERS_KEPT_MS, Answer, Question, list_of, pack_answer, pack_keys, read_answer
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason
from mlserve.cache.seal import NO_SEAL, Seal
from mlserve.cache.tiers.wire import Command, Wire, pack

POLL_S = 0.015
"""What it adds to the way from commit to eviction, at most; some thousandths of a processor."""
MOST_AT_ONCE = 200
MOST_PROCESSES = 1_000
"""Answers to one question that are read."""


class BusTail:
    """Of one process. `poll` by one thread at a time; the rest by any. `answer`: to questions, if it answers them."""

    def __init__(
        self,
        *,
        chain: Chain,
        wire: Wire,
        partitions: int,
        answer: Callable[[Question], Answer] | None = None,
        seal: Seal = NO_SEAL,
    ) -> None:
        self._chain = chain
        self._wire = wire
        self._partitions = partitions
        self._seal = seal
        self._answer = answer
        self._name = token_hex(8).encode()
        """Of this process: what it withdraws is gone here before it hears of it, and may be back in a newer form."""
        self._last: dict[int, bytes] = {}
        """Number of the last message that was read of each partition."""
        self._nothing_new: set[int] = set()
        """Silent, although everything after the last number was asked for."""

    def poll(self) -> None:
        """Hears whatever there is. Never raises: a stream out of reach is silence."""
        self._wire.probe()
        behind = list(range(self._partitions))
        while behind:
            commands = [self._question(partition) for partition in behind]
            replies = self._wire.ask(commands)
            behind = [at for at, reply in zip(behind, replies, strict=True) if self._take(at, reply)]
        self._chain.note_silence()

    def withdraw(self, keys: Sequence[Key]) -> bool:
        """Every process that follows drops these copies whatever they are, this one now. False if one is not told."""
        self._chain.withdraw(keys)
        told: dict[int, list[Key]] = {}
        for key in keys:
            told.setdefault(names_of(key.kind, key.id, self._partitions).partition, []).append(key)
        commands = [
            Command(name_of(at), _xadd(name_of(at), b"withdrawn", pack_withdrawn(of_partition), b"by", self._name))
            for at, of_partition in told.items()
        ]
        replies = self._wire.ask(commands, shed=False)
        return not any(isinstance(reply, MissReason | Exception) for reply in replies)

    def ask(self, question: Question) -> bool:
        """Asks every process that follows what it holds. False if one of the streams could not be reached."""
        by_partition: dict[int, list[Key]] = {}
        for key in question.keys:
            by_partition.setdefault(self._partition_of(key), []).append(key)
        commands = [
            Command(name_of(at), _xadd(name_of(at), b"asked", question.id, b"keys", pack_keys(keys)))
            for at, keys in by_partition.items()
        ]
        replies = self._wire.ask(commands)
        return not any(isinstance(reply, MissReason | Exception) for reply in replies)

    def collect(self, question: Question) -> list[Answer]:
        """What has been answered so far; one for each process and partition. What cannot be read is left out."""
        names = [list_of(at, question.id) for at in sorted({self._partition_of(key) for key in question.keys})]
        replies = self._wire.ask(
            [Command(name, pack(b"LRANGE", name, b"0", b"%d" % (MOST_PROCESSES - 1))) for name in names]
        )
        found = [read_answer(each) for reply in replies if isinstance(reply, list) for each in reply]
        return [answer for answer in found if answer is not None]

    def _answer_to(self, partition: int, question: Question) -> None:
        if self._answer is None:
            return
        name = list_of(partition, question.id)
        told = pack_answer(self._answer(question))
        self._wire.ask(
            [
                Command(name, pack(b"RPUSH", name, told)),
                Command(name, pack(b"PEXPIRE", name, b"%d" % ANSWERS_KEPT_MS)),
            ]
        )

    def _partition_of(self, key: Key) -> int:
        return names_of(key.kind, key.id, self._partitions).partition

    def _question(self, partition: int) -> Command:
        name, last = name_of(partition), self._last.get(partition)
        if last is None or partition in self._nothing_new:
            return Command(name, pack(b"XREVRANGE", name, b"+", b"-", b"COUNT", b"1"))
        return Command(name, pack(b"XRANGE", name, b"(" + last, b"+", b"COUNT", b"%d" % MOST_AT_ONCE))

    def _take(self, partition: int, reply: Any) -> bool:
        """Whether there may be more."""
        if not isinstance(reply, list):
            return False  # nobody answered, or there is a foreign value in the stream's place
        last = self._last.get(partition)
        if last is None and not reply:
            self._last[partition] = b"0-0"  # the stream will begin: all of it is to be heard
        elif last is not None and partition in self._nothing_new:
            self._nothing_new.discard(partition)
            if not reply or _place(reply[0][0]) >= _place(last):
                return bool(reply) and reply[0][0] != last  # it has come meanwhile: in its turn
            # The numbers have gone back: whatever was said in between is lost.
            self._chain.hear(partition, bus.UNREADABLE)
        elif not reply and self._chain.is_silent(partition):
            self._nothing_new.add(partition)
        for number, fields in reply:
            self._last[partition] = number
            message = bus.read(fields, watermark_name=watermark.name_of(partition), seal=self._seal, reader=self._name)
            if isinstance(message, tuple):
                self._chain.withdraw(message)
            elif isinstance(message, Question):
                self._answer_to(partition, message)
            else:
                self._chain.hear(partition, message)
        return len(reply) >= MOST_AT_ONCE


def _place(number: bytes) -> tuple[int, int]:
    """Numbers of a stream are two: milliseconds, and a count within them."""
    milliseconds, _, count = number.partition(b"-")
    return int(milliseconds), int(count)


def _xadd(name: bytes, *fields: bytes) -> bytes:
    return pack(b"XADD", name, b"MAXLEN", b"~", b"%d" % bus.MOST_MESSAGES, b"*", *fields)
