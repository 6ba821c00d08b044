"""Histories written by hand: one key unless said otherwise, times in milliseconds."""

from collections.abc import Mapping, Sequence

from features.checker.history import TIERS, Event, Flag, Read, Way, WriteEvent
from features.checker.verdict import Process, Verdict, judge
from mlserve.cache.outcome import Tier

BOUND_S = 1.0
_MS = 1_000_000


def write(
    version: int, *, sent: int, acked: int | None, key: int = 0, session: int = 1, content: int | None = None
) -> list[WriteEvent]:
    """`acked` None: its writer died."""
    fields = (int(Way.SQL), key, session, version, version, version if content is None else content)
    events = [WriteEvent(Event.SENT, *fields, sent * _MS)]
    return events if acked is None else [*events, WriteEvent(Event.ACKED, *fields, acked * _MS)]


def rolled_back(version: int, *, at: int) -> list[WriteEvent]:
    return [WriteEvent(Event.ROLLED_BACK, int(Way.SQL), 0, 1, version, version, version, at * _MS)]


def read(
    version: int,
    *,
    start: int,
    end: int | None = None,
    key: int = 0,
    tier: Tier = Tier.L2,
    flags: int = 0,
    session: int = 7,
    content: int | None = None,
) -> Read:
    return Read(
        key,
        TIERS.index(tier),
        flags | Flag.ANSWERED,
        session,
        start * _MS,
        (start + 1 if end is None else end) * _MS,
        version,
        version if content is None else content,
    )


def unanswered(*, start: int) -> Read:
    return Read(0, TIERS.index(Tier.DEFAULT), 0, 7, start * _MS, (start + 1) * _MS, 0, 0)


def judged(
    writes: Sequence[Sequence[WriteEvent]],
    reads: Sequence[Read],
    *,
    lost: Sequence[int] = (),
    clock_offset_s: float = 0.0,
    journal: Mapping[int, Sequence[int]] | None = None,
) -> Verdict:
    """`lost`: versions that were sent and never committed."""
    events = [event for of_one in writes for event in of_one]
    if journal is None:
        committed = {(event.key, event.version) for event in events if event.event != Event.ROLLED_BACK}
        journal = {}
        for key, version in sorted(committed):
            if version not in lost:
                journal = {**journal, key: [*journal.get(key, ()), version]}
    processes = [Process(1, clock_offset_s, reads)]
    return judge(journal=journal, writes=events, processes=processes, bound_s=BOUND_S)
