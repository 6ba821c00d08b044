"""Which entities are hot, measured from live traffic.

Each process counts the entities it is asked for and adds its counts to a sorted set in Redis once a second, one set
per minute. The rate of an entity is read over the last minutes, newer ones weighing more, so that yesterday's hot
keys cool down by themselves. The counter of a process is bounded: when it is full, the lower half leaves, which loses
only entities that are not hot (the idea of Misra and Gries 1982).

What Redis does for it is bounded as well, since it answers nobody else meanwhile. A set keeps the `MAX_MEMBERS`
hottest of its minute: whoever publishes takes the coldest beyond that away, a bounded number at a time. A reader gets
the upper part of each set, whatever its size, and adds up here: an entity that is among the hottest over some minutes
is in the upper part of those of them that count.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import msgspec

if TYPE_CHECKING:
    import redis

MINUTES = 5
_DECAY = 0.7
_TRACKED = 4_000
_PUBLISHED = 500
MAX_MEMBERS = 5_000
"""Of a minute's set: ten processes with none of their hot entities in common, and five times what anybody reads."""
MAX_REMOVED = 2_000
"""At one publication, in about a millisecond of Redis; four times what one adds."""
MAX_READ = 2_000
"""Of each minute: twice as many as anybody asks for."""
_SET_LIFE_S = (MINUTES + 1) * 60
_SEPARATOR = "\x1f"


class HotKey(msgspec.Struct, frozen=True):
    """`per_minute`: look-ups a minute over all processes, newer minutes weighing more."""

    kind: str
    id: str
    per_minute: float


class HotKeyCounter:
    """Of one process. Thread-safe; `count` is cheap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, kind: str, entity_id: str) -> None:
        with self._lock:
            self._counts[kind, entity_id] += 1
            if len(self._counts) > _TRACKED:
                self._counts = Counter(dict(self._counts.most_common(_TRACKED // 2)))

    def publish(self, client: "redis.Redis", *, now: float) -> None:
        """Add to the minute's set and start anew. Raises `redis.RedisError`; the counts are then lost, no more.

        A set that has grown beyond `MAX_MEMBERS` loses its coldest, at most `MAX_REMOVED` of them.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        name = _minute_name(int(now // 60))
        pipeline = client.pipeline(transaction=False)
        for (kind, entity_id), count in counts.most_common(_PUBLISHED):
            pipeline.zincrby(name, count, f"{kind}{_SEPARATOR}{entity_id}")
        pipeline.expire(name, _SET_LIFE_S)
        pipeline.zcard(name)
        beyond = pipeline.execute()[-1] - MAX_MEMBERS
        if beyond > 0:
            client.zremrangebyrank(name, 0, min(beyond, MAX_REMOVED) - 1)


class HotReplicas:
    """Which copy of an entity this process reads: a hot one's are spread over several nodes of a Cluster.

    One slot, and so one node, holds an entity; a single entity that everybody asks for is a load that more nodes do not
    help. Each process reads one of `replicas` copies of the hot ones, by its `place`; each copy is filled by its own
    readers, and writes and invalidations reach all of them.
    """

    def __init__(self, replicas: int, *, place: int) -> None:
        self._replica = place % replicas
        self._hot: frozenset[tuple[str, str]] = frozenset()

    def replica_of(self, kind: str, entity_id: str) -> int:
        """0, the entity's own partition, unless it is hot."""
        return self._replica if self._hot and (kind, entity_id) in self._hot else 0

    def choose(self, measured: Sequence["HotKey"]) -> None:
        """Takes those that have at least `HOT_SHARE` of what was measured, and are asked for often enough to matter."""
        total = sum(hot.per_minute for hot in measured)
        self._hot = frozenset(
            (hot.kind, hot.id)
            for hot in measured
            if hot.per_minute >= HOT_PER_MINUTE and hot.per_minute >= HOT_SHARE * total
        )


HOT_PER_MINUTE = 600
HOT_SHARE = 0.02


def read_hot_keys(client: "redis.Redis", *, limit: int, now: float) -> Sequence[HotKey]:
    """The hottest first, at most `MAX_READ`. Raises `redis.RedisError`."""
    minute = int(now // 60)
    weights = [_DECAY**age for age in range(MINUTES)]
    pipeline = client.pipeline(transaction=False)
    for age in range(MINUTES):
        # With a margin: who is hottest over the minutes need not be among the hottest of each.
        pipeline.zrevrange(
            _minute_name(minute - age), 0, min(max(2 * limit, _PUBLISHED), MAX_READ) - 1, withscores=True
        )
    counted: dict[bytes, float] = {}
    for weight, rows in zip(weights, cast(list[list[tuple[bytes, float]]], pipeline.execute()), strict=True):
        for member, score in rows:
            counted[member] = counted.get(member, 0.0) + weight * score
    total_weight = sum(weights)
    hot: list[HotKey] = []
    for member, score in sorted(counted.items(), key=lambda row: -row[1]):
        kind, separator, entity_id = member.decode("utf-8", "replace").partition(_SEPARATOR)
        if separator and kind and entity_id:  # others were not put there by us
            hot.append(HotKey(kind, entity_id, score / total_weight))
        if len(hot) == limit:
            break
    return hot


def _minute_name(minute: int) -> str:
    return f"mlserve:hot:{{0}}:{minute}"
