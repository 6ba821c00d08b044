"""Reads through the application's own path, and notes what they were told."""

import threading
from collections.abc import Sequence

from features.checker.history import TIERS, Flag, Read, ReadBuffer, now_ns
from features.checker.keyspace import Keyspace, content_of
from features.policies import policies_in_force
from features.vectors import read_groups
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Outcome, Tier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine

_TIER_PLACE = {tier: place for place, tier in enumerate(TIERS)}


class _Unproven(threading.local):
    """Groups of which L2, asked by this thread, held a copy that nobody vouched for; None: of none."""

    groups: set[str] | None = None


_unproven = _Unproven()


def watch_for_unproven() -> None:
    """Once in each process that reads: the engine's counters are noted for the read that they are counted for."""
    recorder = engine().recorder
    count = recorder.miss

    def miss(tier: Tier, namespace: str, reason: MissReason) -> None:
        if reason is MissReason.UNPROVEN and tier is Tier.L2:
            _unproven.groups = (_unproven.groups or set()) | {namespace}
        count(tier, namespace, reason)

    recorder.miss = miss  # type: ignore[method-assign]


class Session:
    """One client that sees its own reads and writes in order. Used by one thread.

    `with_token`: its reads name the newest versions that it has seen, and must never be answered with an older one.
    """

    def __init__(self, number: int, keyspace: Keyspace, reads: ReadBuffer, *, with_token: bool) -> None:
        self.number = number
        self._place = keyspace.place
        self._reads = reads
        self._seen: dict[Key, int] = {}
        self._with_token = with_token

    def wrote(self, key: Key, version: int) -> None:
        """Acknowledged to this session."""
        self._seen[key] = max(version, self._seen.get(key, 0))

    def read(self, keys: Sequence[Key], *, strong: bool = False, final: bool = False) -> None:
        flags = (Flag.STRONG if strong else Flag(0)) | (Flag.FINAL if final else Flag(0))
        token: dict[Key, int] | None = None
        if self._with_token and not strong:
            flags |= Flag.TOKEN
            token = {key: self._seen[key] for key in keys if key in self._seen}
        _unproven.groups = None
        start_ns = now_ns()
        reading = read_groups(
            {f"{key.group} {key.id}": key for key in keys},
            book=policies_in_force(),
            request=RequestTier(),
            budget=engine().budget(),
            max_age_s=0 if strong else None,
            at_least=token,
        )
        end_ns = now_ns()
        for key, outcome in reading.outcomes.items():
            self._note(key, outcome, flags, start_ns, end_ns)

    def _note(self, key: Key, outcome: Outcome, flags: Flag, start_ns: int, end_ns: int) -> None:
        if outcome.entry is not None:
            flags |= Flag.ANSWERED
            if self._with_token:
                self._seen[key] = max(outcome.version, self._seen.get(key, 0))
        if outcome.stale:
            flags |= Flag.STALE
        groups = _unproven.groups
        if groups is not None and key.group in groups and outcome.tier in (Tier.L3, Tier.DEFAULT):
            flags |= Flag.UNPROVEN
        self._reads.note(
            Read(
                self._place[key],
                _TIER_PLACE[outcome.tier],
                int(flags),
                self.number,
                start_ns,
                end_ns,
                outcome.version,
                content_of(outcome.values),
            )
        )

    def flush(self) -> None:
        self._reads.flush()
