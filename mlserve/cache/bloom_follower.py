"""Keeps the filters of a process current: follows the announcements, takes over new generations, announces its own.

Whoever is about to commit a row of a new entity announces the id first. An id too many is harmless, one too few is a
wrong "no". So the filters are vouched for only after a look that found every announcement since the look before; when
one may be missing, everything may exist until the next generation, which holds what Postgres held.

A new generation was read from Postgres a while ago. It takes over when all announcements since the position that was
noted *before* Postgres was read are in it as well.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import structlog

from mlserve.cache.bloom import BloomMembership, IdFilter, UnusableFilter
from mlserve.cache.bloom_generation import Generation, Position, decode
from mlserve.cache.bloom_redis import BloomStore, Gap, StoreUnreachable, order
from mlserve.cache.clock import Clock

MOST_AT_ONCE = 20_000
"""New ids of one announcement. More are not announced one by one: the stream is ended, which asks for a new build."""
MOST_WAITING = 100_000
"""New ids that wait for Redis in this process; with more, the stream is ended once it can be reached."""
_log = structlog.get_logger(__name__)


class Event(StrEnum):
    """What happened to generations and announcements, for the metrics."""

    LOADED = "loaded"
    REFUSED = "refused"
    """A generation that is not ours, is damaged, or whose announcements are not all there."""
    GAP = "gap"
    """Announcements may have been missed; the filters that were in use are no longer."""
    UNDELIVERED = "undelivered"
    """New ids could not be announced before their commit; they follow."""


class _Announcement:
    """`entry_id` is its last entry in the stream, None until Redis has taken it."""

    def __init__(self, ids: Mapping[str, Sequence[str]]) -> None:
        self.ids = ids
        self.entry_id: str | None = None

    def __len__(self) -> int:
        return sum(map(len, self.ids.values()))


class Follower:
    """Of one process. `announce` may be called by many threads; `poll` by one at a time.

    `reachable`: whether it is worth a timeout to tell Redis something on the path of a commit.
    """

    def __init__(
        self,
        *,
        membership: BloomMembership,
        store: BloomStore,
        clock: Clock,
        secret: bytes,
        reachable: Callable[[], bool] = lambda: True,
    ) -> None:
        self.membership = membership
        self.problem: str | None = "no generation was loaded yet"
        """Why the filters are unusable, or why the newest generation was not taken over."""
        self.events: Counter[Event] = Counter()
        self._store = store
        self._clock = clock
        self._secret = secret
        self._reachable = reachable
        self._lock = threading.Lock()
        self._position: Position | None = None
        """None: nobody knows what was missed, so only a new generation helps."""
        self._loaded: str | None = None
        self._refused: str | None = None
        self._own: list[_Announcement] = []
        """Announced here and not yet read back: a generation that takes over meanwhile needs them too."""
        self._must_end_stream = False

    def announce(self, ids: Mapping[str, Sequence[str]]) -> bool:
        """To be called before the commit, and after the rows were written: see `existence.build`. Never raises.

        False if Redis could not be told. The ids are then kept for the next `poll`; until then, other processes that
        can reach Redis may take these entities for unknown.
        """
        announcement = _Announcement(ids)
        with self._lock:
            self._add_own(announcement)
            if len(announcement) > MOST_AT_ONCE or sum(map(len, self._own)) + len(announcement) > MOST_WAITING:
                self._must_end_stream = True
                self._own.clear()
            else:
                self._own.append(announcement)
        told = self._deliver([announcement])
        if not told:
            self.events[Event.UNDELIVERED] += 1
        return told

    @property
    def undelivered(self) -> int:
        """New ids that other processes were not told of."""
        with self._lock:
            return sum(len(own) for own in self._own if own.entry_id is None)

    def poll(self) -> None:
        """Announces what is pending, reads what others announced, takes over a new generation. Raises StoreUnreachable.

        What could not be read in time makes the filters unusable by itself.
        """
        self._deliver_again()
        newest = self._follow()
        if newest is not None and newest not in (self._loaded, self._refused):
            self._take_over(newest)

    def _follow(self) -> str | None:
        """The name of the newest generation."""
        if self._position is None:
            return self._store.generation()
        try:
            position, looked_at, newest = self._catch_up(self._position, self.membership.add)
        except Gap as gap:
            self._position = None
            self.membership.suspend()
            self.events[Event.GAP] += 1
            self.problem = str(gap)
            _log.warning("bloom_gap", reason=str(gap))
            return self._store.generation()
        self._reach(position, looked_at)
        return newest

    def _catch_up(self, position: Position, add: Callable[[str, str], None]) -> tuple[Position, float, str | None]:
        """To the end of the stream: where it was, when that was looked at, and the newest generation then."""
        while True:
            looked_at = self._clock.monotonic()
            look = self._store.look(position)
            for kind, entity_id in look.ids:
                add(kind, entity_id)
            position = look.position
            if not look.more:
                return position, looked_at, look.generation

    def _take_over(self, newest: str) -> None:
        try:
            generation = self._fetch(newest)
            if generation is None:
                return
            filters = generation.filters
            position, looked_at, _ = self._catch_up(generation.position, lambda kind, id_: _add(filters, kind, id_))
        except (UnusableFilter, Gap) as error:
            if self._store.generation() == newest:  # else it was replaced while it was read, so the next may be good
                self._refused = newest
                self.events[Event.REFUSED] += 1
                self.problem = f"generation {newest}: {error}"
                _log.warning("bloom_generation_refused", generation=newest, reason=str(error))
            return
        with self._lock:
            for own in self._own:
                for kind, ids in own.ids.items():
                    for entity_id in ids:
                        _add(filters, kind, entity_id)
            self.membership.install(filters)
        self._loaded, self.problem = newest, None
        self.events[Event.LOADED] += 1
        self._reach(position, looked_at)

    def _fetch(self, newest: str) -> Generation | None:
        header = self._store.header(self._secret)
        if header is None:
            return None
        if header.name != newest:
            raise UnusableFilter(f"the header is that of {header.name}")
        return decode(header, self._store.body(header), self._secret)

    def _reach(self, position: Position, looked_at: float) -> None:
        self._position = position
        self.membership.vouch(since=looked_at)
        with self._lock:
            self._own = [own for own in self._own if not _is_read_back(own, position)]

    def _add_own(self, announcement: _Announcement) -> None:
        """Under the lock, so that a generation that takes over either has them already or gets them from `_own`."""
        for kind, ids in announcement.ids.items():
            for entity_id in ids:
                self.membership.add(kind, entity_id)

    def _deliver_again(self) -> None:
        with self._lock:
            waiting = [own for own in self._own if own.entry_id is None]
        if waiting or self._must_end_stream:
            self._deliver(waiting)

    def _deliver(self, announcements: Sequence[_Announcement]) -> bool:
        if not self._reachable():
            return False
        try:
            if self._must_end_stream:
                self._store.end_stream()
                entry_id = None
            else:
                entry_id = self._store.announce(_merged(announcements))
        except StoreUnreachable:
            return False
        with self._lock:
            if entry_id is None:  # there is no stream, so there is nobody left who must be told
                self._must_end_stream = False
                self._own = [own for own in self._own if own not in announcements]
            for announcement in announcements:
                announcement.entry_id = entry_id
        return True


def _add(filters: Mapping[str, IdFilter], kind: str, entity_id: str) -> None:
    held = filters.get(kind)
    if held is not None:
        held.add(entity_id)


def _merged(announcements: Sequence[_Announcement]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    for announcement in announcements:
        for kind, ids in announcement.ids.items():
            merged.setdefault(kind, []).extend(ids)
    return merged


def _is_read_back(own: _Announcement, position: Position) -> bool:
    return own.entry_id is not None and order(own.entry_id) <= order(position.id)
