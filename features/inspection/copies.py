"""What every tier holds of some keys at this moment, and whether it would be served without a flag."""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from mlserve.cache.clock import Clock
from mlserve.cache.entry import Entry
from mlserve.cache.inquiry import Answer, Question, digest_of
from mlserve.cache.keys import Key, life_share
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy, Verdict
from mlserve.cache.tiers.base import CacheTier

ANSWERS_WITHIN_S = 0.2
"""For the processes' answers; a process looks at the bus every few milliseconds."""
_KEYS_PER_TRIP = 500
_AWAY = (MissReason.TIMEOUT, MissReason.BREAKER)


class TierAway(Exception):
    """L2 did not answer, so nobody knows what it holds."""


class Copy(msgspec.Struct, frozen=True):
    """`place`: which process (L1), or which copy of a hot entity (L2). `serves`: fresh by the policy in force."""

    tier: Tier
    place: str
    key: Key
    version: int
    digest: bytes
    serves: bool


class Looked(msgspec.Struct, frozen=True):
    """`processes`: the names of those that answered."""

    copies: Mapping[Key, Sequence[Copy]]
    processes: Collection[str]


class Bus(Protocol):
    """The question to every process that follows the stream of batches, and its answers."""

    def ask(self, question: Question) -> bool:
        """False if one of the streams could not be reached."""
        ...

    def collect(self, question: Question) -> list[Answer]:
        """What has been answered so far."""
        ...


class Tiers:
    """All that can hold copies: `l2`, once for each place where it may keep one, and the processes behind `bus`."""

    def __init__(self, *, l2: Sequence[CacheTier], bus: Bus, clock: Clock) -> None:
        self._l2 = l2
        self._bus = bus
        self._clock = clock

    def look(self, keys: Collection[Key], policies: Mapping[str, Policy]) -> Looked:
        """Takes `ANSWERS_WITHIN_S` if a policy lets processes keep copies. Raises TierAway."""
        wanted = sorted(keys)
        in_memory = [key for key in wanted if policies[key.group].use_l1]
        found: dict[Key, list[Copy]] = {key: [] for key in wanted}
        processes: set[str] = set()
        for copy in self._in_processes(in_memory, policies, processes):
            found[copy.key].append(copy)
        for copy in self._in_l2([key for key in wanted if policies[key.group].use_l2], policies):
            found[copy.key].append(copy)
        return Looked(found, processes)

    def _in_l2(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Iterable[Copy]:
        for place, tier in enumerate(self._l2):
            for part in _parts(keys):
                now = self._clock.now()
                for key, held in tier.peek_many(part, policies).items():
                    if held in _AWAY:
                        raise TierAway(f"L2 does not answer: {held}")
                    if isinstance(held, Entry):
                        serves = _serves(held, key, policies[key.group], now=now)
                        yield Copy(Tier.L2, str(place or ""), key, held.version, digest_of(held.values), serves)

    def _in_processes(self, keys: Sequence[Key], policies: Mapping[str, Policy], processes: set[str]) -> Iterable[Copy]:
        questions = [Question(secrets.token_hex(16).encode(), tuple(part)) for part in _parts(keys)]
        for question in questions:
            if not self._bus.ask(question):
                raise TierAway("the processes cannot be asked: L2 does not answer")
        if questions:
            self._clock.sleep(ANSWERS_WITHIN_S)
        for question in questions:
            asked = set(question.keys)
            for answer in self._bus.collect(question):
                processes.add(answer.process)
                for held in answer.held:
                    key, entry = held.key, held.as_entry()
                    if key in asked:
                        serves = _serves(entry, key, policies[key.group], now=answer.at)
                        yield Copy(Tier.L1, answer.process, key, held.version, held.digest, serves)


def _serves(entry: Entry, key: Key, policy: Policy, *, now: float) -> bool:
    """Whether a request that asks for nothing tighter than the policy gets it, unflagged."""
    return policy.verdict(entry, now=now, max_age_s=None, life_share=life_share(key)) is Verdict.FRESH


def _parts(keys: Sequence[Key]) -> Iterable[Sequence[Key]]:
    return (keys[start : start + _KEYS_PER_TRIP] for start in range(0, len(keys), _KEYS_PER_TRIP))
