"""Which ids never existed, answered in this process without a trip ("cache penetration").

Ids that nobody has are in no cache: each look-up is a read of the source and, afterwards, a negative entry that pushes
out something useful. A Bloom filter of all ids that exist (Bloom 1970) says "never existed" for nearly all of them,
within a microsecond and 29 bits an id. It errs to one side only: "no" is certain, "maybe" is wrong for at most
`FALSE_POSITIVE_RATE` of the unknown ids. Where "no" would not be certain, everything may exist.

The hash is keyed, with a key per filter: with a public one, whoever wants the source's reads could compute ids for
which the filter errs (Gerbet, Kumar and Lauradoux 2015).

Here is what answers. `bloom_generation.py` says how a filter is saved, `bloom_stream.py` how new ids are announced, and
`bloom_follower.py` keeps the answers of a process current.
"""

import math
import operator
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import Protocol

from rbloom import Bloom

from mlserve.cache.clock import Clock

FALSE_POSITIVE_RATE = 0.001
"""Of a filter that holds its capacity; one that is half full errs a hundred times less."""
HEADROOM = 2
"""Capacity for each id that exists at the build: the rest is for those announced before the next build."""
LEAST_CAPACITY = 10_000
"""So that a service that begins with nothing has room for its first customers."""
MOST_BYTES = 256 * 1024 * 1024
"""Of one filter, which every process holds (twice while a new one is loaded): 70 million ids."""
TRUST_S = 2.0
"""How long after the last look at the announcements a "no" still counts: four polls."""
_HEADER_BYTES = 8
_MOST_HASHES = 64


class Answer(StrEnum):
    """What became of a look-up. `MAYBE_ABSENT` over itself plus `NO` is the live false-positive rate."""

    NO = "no"
    MAYBE_EXISTS = "maybe_exists"
    MAYBE_ABSENT = "maybe_absent"
    UNUSABLE = "unusable"
    """There was no filter to be trusted, so the id was let through."""


class Membership(Protocol):
    """Whether an entity may exist. Never raises, never waits."""

    def may_exist(self, kind: str, entity_id: str) -> bool:
        """False only if the source had never heard of this id at most `TRUST_S` ago. True wherever that is unknown."""
        ...

    def observed(self, kind: str, entity_id: str, *, exists: bool) -> None:
        """What the source then said about an id that may exist."""
        ...


class NullMembership:
    """Knows nothing, so everything may exist."""

    def may_exist(self, kind: str, entity_id: str) -> bool:
        return True

    def observed(self, kind: str, entity_id: str, *, exists: bool) -> None:
        """Nothing to compare it with."""


class UnusableFilter(Exception):
    """These bytes are no filter of ours."""


class IdFilter:
    """A Bloom filter of ids. `add` and `in` may be used by many threads at once."""

    def __init__(self, capacity: int, hash_key: bytes) -> None:
        self._set_up(Bloom(capacity, FALSE_POSITIVE_RATE, operator.index), capacity, hash_key)

    def _set_up(self, bloom: Bloom, capacity: int, hash_key: bytes) -> None:
        # The library is given numbers. With a hash function in Python, threads could take turns within one of its
        # calls, and it refuses to look something up while something is added.
        self._bloom = bloom
        self._hash = blake2b(digest_size=16, key=hash_key)
        self.capacity = capacity

    @classmethod
    def for_count(cls, count: int, hash_key: bytes) -> "IdFilter":
        """Of a size that keeps the false-positive rate until `HEADROOM` times `count` ids are in it."""
        return cls(max(HEADROOM * count, LEAST_CAPACITY), hash_key)

    @classmethod
    def load(cls, data: bytes, *, capacity: int, hash_key: bytes) -> "IdFilter":
        """Of what `dump` returned. Raises UnusableFilter where the library would panic or loop for ever."""
        if not _HEADER_BYTES < len(data) <= MOST_BYTES:
            raise UnusableFilter(f"a filter of {len(data)} bytes; allowed are {_HEADER_BYTES + 1} to {MOST_BYTES}")
        hashes = int.from_bytes(data[:_HEADER_BYTES], "little")
        if not 1 <= hashes <= _MOST_HASHES:
            raise UnusableFilter(f"a filter with {hashes} hashes an id; allowed are 1 to {_MOST_HASHES}")
        loaded = cls.__new__(cls)
        loaded._set_up(Bloom.load_bytes(data, operator.index), capacity, hash_key)
        return loaded

    def dump(self) -> bytes:
        return self._bloom.save_bytes()

    def add(self, entity_id: str) -> None:
        self._bloom.add(self._number(entity_id))

    def add_all(self, entity_ids: Iterable[str]) -> None:
        self._bloom.update(list(map(self._number, entity_ids)))

    def __contains__(self, entity_id: str) -> bool:
        return self._number(entity_id) in self._bloom

    def _number(self, entity_id: str) -> int:
        hashed = self._hash.copy()
        hashed.update(entity_id.encode("utf-8", "surrogatepass"))
        return int.from_bytes(hashed.digest(), "little", signed=True)


class BloomMembership:
    """The filters of this process, one per kind of entity. Thread-safe; unusable until the first `install`.

    Who keeps it current calls `vouch` whenever all announcements up to a moment are in it. Nobody vouching makes it
    unusable by itself.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._filters: Mapping[str, IdFilter] = {}
        self._trusted_until = -math.inf
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, Answer]] = Counter()

    def may_exist(self, kind: str, entity_id: str) -> bool:
        # Trust is read before the filters: `suspend` between the two leaves none to say no.
        trusted = self.usable
        held = self._filters.get(kind)
        if held is None or not trusted:
            self._count(kind, Answer.UNUSABLE)
            return True
        if entity_id in held:
            return True
        self._count(kind, Answer.NO)
        return False

    def observed(self, kind: str, entity_id: str, *, exists: bool) -> None:
        if self.usable and kind in self._filters:
            self._count(kind, Answer.MAYBE_EXISTS if exists else Answer.MAYBE_ABSENT)

    @property
    def usable(self) -> bool:
        """Whether a "no" would be believed now."""
        return self._clock.monotonic() < self._trusted_until

    @property
    def answers(self) -> dict[tuple[str, Answer], int]:
        """Kind and answer to their number since this process began."""
        with self._lock:
            return dict(self._answers)

    def add(self, kind: str, entity_id: str) -> None:
        """An id of which somebody says that it exists, or will in a moment."""
        held = self._filters.get(kind)
        if held is not None:
            held.add(entity_id)

    def install(self, filters: Mapping[str, IdFilter]) -> None:
        """Answer by these from now on. The trust that there is goes on: they must be as current as the ones before."""
        self._filters = filters

    def vouch(self, *, since: float) -> None:
        """All ids announced before `since` (monotonic) are in the filters."""
        self._trusted_until = since + TRUST_S

    def suspend(self) -> None:
        """Everything may exist until filters are installed and vouched for."""
        self._trusted_until = -math.inf
        self._filters = {}

    def _count(self, kind: str, answer: Answer) -> None:
        with self._lock:
            self._answers[kind, answer] += 1
