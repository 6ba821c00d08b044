"""Tells L2 what the source has committed: each partition is taken from one watermark to the next (`lua/batch.lua`).

A partition with many changes is told in parts. Until the last of them its watermark promises no more than before; it
only counts the parts, so that two relays which tell the same changes at the same time notice each other.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import NoScriptError

from mlserve.cache import bus, watermark
from mlserve.cache.keys import names_of
from mlserve.cache.seal import NO_SEAL, Seal
from mlserve.cache.tiers.base import Entity
from mlserve.cache.tiers.l2_redis import REPLICAS
from mlserve.cache.tiers.wire import Command, Wire, pack
from mlserve.cache.watermark import Watermark, name_of, parse

MOST_KEYS = 500
"""Told in one call: a few milliseconds in which Redis answers nobody else."""
TOMBSTONE_MS = 60_000
"""Longer than anybody takes who read the old value and still wants to store it."""
_LARGEST_VERSION = 2**63 - 1
_UNKNOWN = b"?"
"""Is no watermark, so a call that builds on it changes nothing and brings the one that is there."""


class Change(NamedTuple):
    """A row of the source. `kind` and `id` of the entity; `version`: the largest that was committed."""

    kind: str
    id: str
    group: str
    version: int


class EntityChange(msgspec.Struct, frozen=True, gc=False):
    """What changed of one entity, where one of its copies lies. `replica`: elsewhere than in its own partition."""

    entity: Entity
    record: bytes
    lease: bytes
    replica: bool
    versions: tuple[tuple[bytes, bytes], ...]
    """Field and version, as Redis wants them."""


class Step(msgspec.Struct, frozen=True):
    """From `held`, the watermark's bytes as they were last seen (empty: none), to `following`, by way of `changes`.

    `promised`: what `held` says, unless it is none of ours.
    """

    held: bytes
    promised: Watermark | None
    following: Watermark
    changes: Sequence[EntityChange] = ()


class Applied(NamedTuple):
    """`watermark`: what the partition holds now. `keys` that it was told of, and `tombstones` written for them."""

    watermark: bytes
    keys: int = 0
    tombstones: int = 0


class Raced(NamedTuple):
    """The partition holds another `watermark`: a relay has moved it on, or a failover has moved it back."""

    watermark: bytes


class Unanswered(NamedTuple):
    """Whether the call arrived is unknown. `why` is for people."""

    why: str


Answer = Applied | Raced | Unanswered


def by_partition(changes: Iterable[Change], partitions: int) -> dict[int, list[EntityChange]]:
    """The changes where they have to be told: at the entity and, in a Cluster, wherever a copy of a hot one may lie."""
    versions: dict[tuple[str, str], list[tuple[bytes, bytes]]] = {}
    for kind, entity_id, group, version in changes:
        versions.setdefault((kind, entity_id), []).append((group.encode(), _packed(version)))
    told: dict[int, list[EntityChange]] = {}
    for entity, of_entity in versions.items():
        places = set()
        for replica in range(REPLICAS if partitions > 1 else 1):
            names = names_of(*entity, partitions, replica)
            if names.record not in places:  # few partitions: replicas meet
                places.add(names.record)
                change = EntityChange(entity, names.record, names.lease, replica > 0, tuple(of_entity))
                told.setdefault(_partition_of(names.record), []).append(change)
    return told


class Batches:
    """Over one wire to L2. Nothing is raised: who does not answer is `Unanswered`."""

    def __init__(self, wire: Wire, *, seal: Seal = NO_SEAL) -> None:
        self._wire = wire
        self._seal = seal

    def read(self, partitions: Iterable[int]) -> dict[int, Answer]:
        """What each partition holds: `Raced`, since nobody has told it anything."""
        return self._call({partition: (name_of(partition), _UNKNOWN, _UNKNOWN, ()) for partition in partitions})

    def parse(self, partition: int, text: bytes) -> Watermark | None:
        """What the partition's bytes say; None if they are no watermark, or not sealed by us."""
        return parse(text, name_of(partition), self._seal)

    def claim(self, held: Mapping[int, bytes], marker: bytes) -> dict[int, Answer]:
        """Puts `marker`, which is no watermark, in the place of what each partition holds."""
        answers = self._call({partition: (name_of(partition), was, marker, ()) for partition, was in held.items()})
        return {at: Applied(marker) if isinstance(answer, Applied) else answer for at, answer in answers.items()}

    def apply(self, steps: Mapping[int, Step], *, batch: str) -> dict[int, Answer]:
        """Takes each partition its step on; all of them at the same time. `batch` is a name that never comes twice."""
        answers: dict[int, Answer] = {}
        going = {partition: deque(self._parts(partition, step, batch)) for partition, step in steps.items()}
        while going:
            told = {partition: parts.popleft() for partition, parts in going.items()}
            replies = self._call({partition: (name_of(partition), *part) for partition, part in told.items()})
            for partition, reply in replies.items():
                before, part = answers.get(partition), told[partition]
                if isinstance(reply, Applied):
                    keys = sum(len(change.versions) for change in part.changes)
                    reply = Applied(part.following, keys, reply.tombstones)
                    if isinstance(before, Applied):
                        reply = Applied(part.following, keys + before.keys, reply.tombstones + before.tombstones)
                answers[partition] = reply
            going = {at: parts for at, parts in going.items() if parts and isinstance(answers[at], Applied)}
        return answers

    def _parts(self, partition: int, step: Step, batch: str) -> Iterator["_Part"]:
        name, held, chunks = name_of(partition), step.held, list(_chunks(step.changes)) or [()]
        for number, chunk in enumerate(chunks[:-1], 1):
            assert step.promised is not None, "changes follow on a watermark"
            counted = msgspec.structs.replace(step.promised, relay=f"{batch}/{number}")
            following = counted.pack(name, self._seal)
            yield _Part(held, following, chunk)
            held = following
        yield _Part(held, step.following.pack(name, self._seal), chunks[-1])

    def _call(self, calls: Mapping[int, tuple[bytes, bytes, bytes, Sequence[EntityChange]]]) -> dict[int, Answer]:
        if not calls:
            return {}
        arguments = [_arguments(*call, self._seal) for call in calls.values()]
        replies = self._ask(b"EVALSHA", _script()[1], arguments)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # a server that is new or was restarted: the text, once, teaches it
            again = self._ask(b"EVAL", _script()[0], [arguments[place] for place in unknown])
            for place, reply in zip(unknown, again, strict=True):
                replies[place] = reply
        return {partition: _answer(reply) for partition, reply in zip(calls, replies, strict=True)}

    def _ask(self, verb: bytes, script: bytes, arguments: Sequence[tuple[bytes, list[bytes]]]) -> list[Any]:
        commands = [Command(name, pack(verb, script, *parts)) for name, parts in arguments]
        return self._wire.ask(commands, shed=False)


class _Part(NamedTuple):
    """What one call tells: from one watermark's bytes to the next."""

    held: bytes
    following: bytes
    changes: Sequence[EntityChange]


def _chunks(changes: Sequence[EntityChange]) -> Iterator[Sequence[EntityChange]]:
    chunk: list[EntityChange] = []
    keys = 0
    for change in changes:
        if chunk and keys + len(change.versions) > MOST_KEYS:
            yield chunk
            chunk, keys = [], 0
        chunk.append(change)
        keys += len(change.versions)
    if chunk:
        yield chunk


def _arguments(
    name: bytes, held: bytes, following: bytes, changes: Sequence[EntityChange], seal: Seal
) -> tuple[bytes, list[bytes]]:
    """The key that decides the node, and what follows the script in the command."""
    parts = [b"%d" % (2 + 2 * len(changes)), name, bus.name_of(_partition_of(name))]
    for change in changes:
        parts += (change.record, change.lease)
    told = bus.pack_changes((change.entity, change.versions) for change in changes if not change.replica)
    told = seal.seal_message(told, held, following)
    parts += (held, following, b"%d" % watermark.MOST_BYTES, b"%d" % TOMBSTONE_MS, told, b"%d" % bus.MOST_MESSAGES)
    for change in changes:
        parts += (b"1" if change.replica else b"0", b"%d" % len(change.versions))
        for version in change.versions:
            parts += version
    return name, parts


def _answer(reply: Any) -> Answer:
    match reply:
        case [1, int(tombstones)]:
            return Applied(b"", tombstones=tombstones)
        case [0, bytes(held)]:
            return Raced(held)
        case Exception():  # of the server: read only, out of memory, still loading
            return Unanswered(str(reply))
        case _:
            return Unanswered("no answer")


def _packed(version: int) -> bytes:
    """A line that somebody wrote into the journal by hand may be out of bounds; the nearest is told."""
    try:
        return version.to_bytes(8, "big")
    except OverflowError:
        return (0 if version < 0 else _LARGEST_VERSION).to_bytes(8, "big")


def _partition_of(name: bytes) -> int:
    """By the name's hash tag."""
    return int(name[name.index(b"{") + 1 : name.index(b"}")])


@cache
def _script() -> tuple[bytes, bytes]:
    """Its text, and its digest as Redis names it; no secret depends on that."""
    text = files("mlserve.cache").joinpath("lua", "batch.lua").read_bytes()
    return text, sha1(text, usedforsecurity=False).hexdigest().encode()
