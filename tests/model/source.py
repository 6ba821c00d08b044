"""Postgres as a value: who has written what, what is committed, and what a snapshot sees.

Transactions are numbered in the order in which they begin to write; each writes one key and draws its version then,
under the row's lock, so that the versions of a key grow in the order of its commits. Commits of different keys come in
any order, which is what makes snapshots more than a number.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from features.journal import Incarnation, Kept, KeptPartition, Span
from mlserve.cache.keys import Key
from mlserve.cache.tiers.batches import Change

FIRST_XID = 100
NOW = 1_700_000_000.0
TICK_S = 0.001
"""Each write that ends takes the clock of Postgres this much further."""
INCARNATION = Incarnation(1, 1)
NEVER = 0
"""The version of a key that nobody has written."""


class Write(NamedTuple):
    """`state`: R while it holds the row, then C (committed) or A (rolled back)."""

    key: Key
    state: str = "R"


class Source(NamedTuple):
    """`writes` in the order of their transactions' numbers. `epoch` of the one partition; None: never noted."""

    writes: tuple[Write, ...] = ()
    epoch: int | None = None

    def snapshot(self) -> str:
        """As `pg_current_snapshot` prints it."""
        ended = [place for place, write in enumerate(self.writes) if write.state != "R"]
        following = max(ended, default=-1) + 1
        running = [place for place in range(following) if self.writes[place].state == "R"]
        oldest = running[0] if running else following
        text = ",".join(str(FIRST_XID + place) for place in running)
        return f"{FIRST_XID + oldest}:{FIRST_XID + following}:{text}"

    def newest(self, key: Key, snapshot: str | None = None) -> int:
        """The version of `key` that is committed, or that `snapshot` sees."""
        return max((version for version in self.versions(key, snapshot)), default=NEVER)

    def versions(self, key: Key, snapshot: str | None = None) -> list[int]:
        return [
            place + 1
            for place, write in enumerate(self.writes)
            if write.key == key and write.state == "C" and (snapshot is None or _is_visible(place, snapshot))
        ]

    def changes(self, snapshot: str) -> list[Change]:
        """What is committed now and was not at `snapshot`: the newest version of each key."""
        fresh: dict[Key, int] = {}
        for place, (key, state) in enumerate(self.writes):
            if state == "C" and not _is_visible(place, snapshot):
                fresh[key] = place + 1
        return [Change(key.kind, key.id, key.group, version) for key, version in fresh.items()]

    def ended(self, version: int, state: str) -> "Source":
        writes = list(self.writes)
        writes[version - 1] = writes[version - 1]._replace(state=state)
        return self._replace(writes=tuple(writes))


def _is_visible(place: int, snapshot: str) -> bool:
    _, following, running = snapshot.split(":")
    xid = FIRST_XID + place
    return xid < int(following) and str(xid) not in running.split(",")


def safe_time_of(snapshot: str) -> float:
    """The moment of a snapshot: as many ticks after `NOW` as it sees writes that have ended."""
    _, following, running = snapshot.split(":")
    return NOW + TICK_S * (int(following) - FIRST_XID - len([xid for xid in running.split(",") if xid]))


def writes_before(moment: float) -> int:
    """How many had ended by then."""
    return round((moment - NOW) / TICK_S)


# --- what is asked of it: each returns every answer that may be given, with the source after it ---

Answers = Sequence[tuple[object, Source]]


def update(source: Source, key: Key) -> Answers:
    """Takes the row and draws a version; nobody can while another one holds the row."""
    if any(write == Write(key) for write in source.writes):
        return []
    return [(len(source.writes) + 1, source._replace(writes=(*source.writes, Write(key))))]


def commit(source: Source, version: int) -> Answers:
    return [(True, source.ended(version, "C"))]


def commit_or_roll_back(source: Source, version: int) -> Answers:
    return [(True, source.ended(version, "C")), (False, source.ended(version, "A"))]


def write(source: Source, key: Key) -> Answers:
    """Both in one moment."""
    return [(None, after.ended(len(after.writes), "C")) for _, after in update(source, key)]


def nothing(_source: Source, _key: Key) -> Answers:
    """Never happens."""
    return []


def read(source: Source, key: Key) -> Answers:
    return [(source.newest(key), source)]


def read_with_moment(source: Source, key: Key) -> Answers:
    """The version, and up to when everything that was acknowledged is in it."""
    return [((source.newest(key), safe_time_of(source.snapshot())), source)]


def read_replica(source: Source, key: Key) -> Answers:
    """Any version that ever was the newest: a replica may lag."""
    return [(version, source) for version in (NEVER, *source.versions(key))]


def since(source: Source, snapshot: str) -> Answers:
    return [((source.snapshot(), tuple(source.changes(snapshot))), source)]


def since_if_changed(source: Source, snapshot: str) -> Answers:
    """The same, but nobody asks as long as nothing has changed."""
    return [answer for answer in since(source, snapshot) if answer[0][1]]  # type: ignore[index]


def now(source: Source) -> Answers:
    return [(source.snapshot(), source)]


def kept(source: Source) -> Answers:
    return [(source.epoch, source)]


def raise_epoch(source: Source, above: int, seen: int | None) -> Answers:
    """As the journal's statement: above every number that was, unless another relay has raised it since `seen`."""
    if source.epoch != seen:
        return [(None, source)]
    raised = max(source.epoch or 0, above) + 1
    return [(raised, source._replace(epoch=raised))]


class ModelJournal:
    """The relay's journal (`features.journal.Journal`), asked through `ask`. `since`: the question for changes."""

    def __init__(self, ask: Callable[..., Any], since: Callable[..., Answers] = since) -> None:
        self._ask = ask
        self._since = since

    def since(self, snapshot: str) -> Span:
        following, changes = self._ask(self._since, snapshot)
        return Span(following, safe_time_of(following), list(changes))

    def now(self) -> Span:
        snapshot = str(self._ask(now))
        return Span(snapshot, safe_time_of(snapshot), ())

    def kept(self) -> Kept:
        epoch = self._ask(kept)
        partitions = {} if epoch is None else {0: KeptPartition(epoch, 0, INCARNATION)}
        return Kept(INCARNATION, partitions)

    def raise_epochs(self, wanted: dict[int, int], kept: Kept) -> dict[int, int]:
        before = kept.partitions.get(0)
        raised = self._ask(raise_epoch, wanted[0], before.epoch if before else None)
        return {} if raised is None else {0: raised}

    def remember(self, watermarks: object) -> None: ...

    def close(self) -> None: ...
