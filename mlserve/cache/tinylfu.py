"""A bounded memory with adaptive W-TinyLFU eviction, whose hits cost hardly more than those of a dict.

A hit takes no lock and moves nothing: it looks into a dict and appends the entry to a short bounded queue. The next
write replays the queue under the lock. When reads come in much larger numbers than writes the oldest of the queue are
lost, which costs accuracy where there is no pressure, and nothing else. (Caffeine's read buffer is the model.)

`segments.py` decides who stays, `window.py` how much of the memory the newest may use.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable
from random import Random
from threading import Lock
from typing import Any

from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.segments import GONE, Node, Segments, Sketch, spread
from mlserve.cache.window import WindowChoice

NO_NAMESPACE = "django"
"""Of what came through Django's cache API."""
_UNREPLAYED_READS = 128
"""A write has to replay them: some 100 us at most."""
_PERIOD_PER_ENTRY = 10
"""Requests for each held entry after which counts are halved, as in the paper."""

Lookup = Callable[..., Any]


class TinyLfuStore:
    """At most `max_entries` entries that weigh `max_bytes` at most, one of them at least a `max_entries`th of it.

    Thread-safe. `get(key, default=None)` counts as a request for the key, `peek(key, default=None)` does not; both
    take no lock.
    """

    def __init__(
        self,
        max_entries: int,
        max_bytes: int,
        *,
        weigh: Callable[[Any], int],
        random_source: Random | None = None,
    ) -> None:
        if max_entries < 1 or max_bytes < 1:
            raise ValueError(f"a store needs room: max_entries {max_entries}, max_bytes {max_bytes}")
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.evictions = 0
        """How many entries were pushed out by newer ones so far."""
        self.evictions_of: Counter[str] = Counter()
        """The same by namespace."""
        self._weigh = weigh
        self._least_weight = max(1, max_bytes // max_entries)
        self._random = random_source or Random()
        self._lock = Lock()
        self._nodes: dict[Hashable, Node] = {}
        self._reads: deque[Node] = deque(maxlen=_UNREPLAYED_READS)
        self._departed = _Departed(max_entries)
        self._sketch = Sketch(max_entries)
        self._window = WindowChoice(
            max_entries=max_entries, max_weight=max_bytes, sketch=self._sketch, random_source=self._random
        )
        self._segments = self._empty_segments()
        self.get, self.peek = self._lookups()

    def _empty_segments(self) -> Segments:
        return Segments(
            max_entries=self.max_entries,
            max_weight=self.max_bytes,
            sketch=self._sketch,
            random_source=self._random,
            window_share=self._window.share,
        )

    def _lookups(self) -> tuple[Lookup, Lookup]:
        """As closures: a method would look up its parts with every call, which costs as much as the rest."""
        lookup, record = self._nodes.get, self._reads.append

        def get(key: Hashable, default: Any = None) -> Any:
            node = lookup(key)
            if node is None:
                return default
            record(node)
            return node.value

        def peek(key: Hashable, default: Any = None) -> Any:
            node = lookup(key)
            return default if node is None else node.value

        return get, peek

    def why_missing(self, key: Hashable) -> MissReason:
        """Why a key that was not found is not there. Remembered for about as many keys as are held, then `COLD`."""
        return self._departed.reason_of(key)

    def put(self, key: Hashable, value: Any) -> bool:
        """False if the value is too large to be held at all; then nothing is held under this key."""
        with self._lock:
            return self._put(key, value)

    def pop(self, key: Hashable) -> Any:
        """The value that was held, None if there was none."""
        with self._lock:
            self._replay_reads()
            node = self._nodes.pop(key, None)
            if node is None:
                return None
            self._segments.remove(node)
            self._departed.note(key, MissReason.INVALIDATED)
            return node.value

    def clear(self) -> None:
        with self._lock:
            self._reads.clear()
            for key, node in self._nodes.items():
                node.place = GONE  # a reader that has just found it may still record that
                self._departed.note(key, MissReason.INVALIDATED)
            self._nodes.clear()
            self._segments = self._empty_segments()

    def begin_anew(self) -> None:
        """In a fork's child, where nobody else is at work, whoever held the lock in the parent."""
        self._lock = Lock()
        self._reads.clear()
        self._nodes.clear()
        self._segments = self._empty_segments()

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def weight_bytes(self) -> int:
        return self._segments.weight

    def _put(self, key: Hashable, value: Any) -> bool:
        self._replay_reads()
        weight = max(self._least_weight, self._weigh(value))
        node = self._nodes.get(key)
        if weight > self.max_bytes:
            if node is not None:
                self._segments.remove(node)
                del self._nodes[key]
            self._departed.note(key, MissReason.EVICTED)
            return False
        if node is None:
            node = Node(key, value, weight, spread(key))
            self._segments.add(node)
            self._nodes[key] = node
        else:
            node.value = value
            self._segments.hit(node)
            if weight != node.weight:
                self._segments.reweigh(node, weight)
        self._count(node)
        for evicted in self._segments.make_room():
            del self._nodes[evicted.key]
            self._departed.note(evicted.key, MissReason.EVICTED)
            self.evictions += 1
            self.evictions_of[evicted.key.group if isinstance(evicted.key, Key) else NO_NAMESPACE] += 1
        return True

    def _replay_reads(self) -> None:
        reads = self._reads
        for _ in range(len(reads)):
            node = reads.popleft()
            if node.place != GONE:
                self._segments.hit(node)
                self._count(node)

    def _count(self, node: Node) -> None:
        self._sketch.add(node.code)
        if self._sketch.added >= _PERIOD_PER_ENTRY * max(len(self._nodes), self.max_entries // 16, 64):
            self._sketch.halve()
        if node.code < self._window.sampled_below and self._window.ask(node.code, node.weight):
            self._segments.resize_window(self._window.share)


class _Departed:
    """Why keys went, for the last `max_entries` or half of them. Holds hashes, not keys."""

    def __init__(self, max_entries: int) -> None:
        self._most = max(1, max_entries // 2)
        self._recent: dict[int, MissReason] = {}
        self._before: dict[int, MissReason] = {}

    def note(self, key: Hashable, reason: MissReason) -> None:
        if len(self._recent) >= self._most:
            self._before, self._recent = self._recent, {}
        self._recent[hash(key)] = reason

    def reason_of(self, key: Hashable) -> MissReason:
        """Takes no lock: the recent ones are looked at first, and are the earlier ones only after that."""
        code = hash(key)
        return self._recent.get(code) or self._before.get(code) or MissReason.COLD
