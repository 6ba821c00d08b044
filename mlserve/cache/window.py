"""How large the window of W-TinyLFU should be, for the traffic that there is.

Bursts of new keys want all of the memory as window, which is plain LRU; loops and scans want next to none. Hill
climbing on the memory's own hit rate (Einziger, Eytan, Friedman, Manes: Adaptive software cache management, 2018)
tries a step and looks whether the rate rises; it needs many times the capacity in requests for each step, and takes a
change of the traffic for an effect of the step. Here the slope is read off instead: miniature memories, one for
each share on a ladder, all see the same small sample of the keys, and the window climbs to the share of the one that
hits most. The first share is large, so that LRU, which needs no time to learn, is never far ahead; what does not fit
into it is enough for the most popular keys to outlast a first scan.

A miniature of a hundredth of the memory, asked for a hundredth of the keys, hits about as often as the memory would:
Waldspurger, Saemundsson, Ahmad, Park: Cache modeling and optimization using miniature simulations, 2017.
"""

from random import Random

from mlserve.cache.segments import Node, Segments, Sketch

LADDER = (0.75, 1.0, 0.2, 0.01)
"""Shares of the window, the first one first; of equals the earlier is chosen."""
_SAMPLE_ENTRIES = 500
"""Capacity of a miniature: enough for 1 % of it to be five entries; a memory of 100,000 samples one key of 200."""
_LOOKS_PER_FILL = 30
"""How often the hits are compared while a miniature's capacity of requests goes by."""
_KEPT = 0.965
"""Weight of the past at each look: two fills ago counts an eighth."""
_LEAD_SHARE = 0.005
"""Of the requests; a smaller lead is noise."""


class Miniature:
    """A memory of one size of window that holds no values."""

    def __init__(
        self, *, share: float, max_entries: int, max_weight: int, sketch: Sketch, random_source: Random
    ) -> None:
        self.share = share
        self.hits = 0.0
        self._nodes: dict[int, Node] = {}
        self._segments = Segments(
            max_entries=max_entries,
            max_weight=max_weight,
            sketch=sketch,
            random_source=random_source,
            window_share=share,
        )

    def ask(self, code: int, weight: int) -> None:
        """Held is a hit; what is not held is taken in."""
        node = self._nodes.get(code)
        if node is not None:
            self._segments.hit(node)
            self.hits += 1
            return
        node = self._nodes[code] = Node(None, None, weight, code)
        self._segments.add(node)
        for evicted in self._segments.make_room():
            del self._nodes[evicted.code]


class WindowChoice:
    """Not thread-safe. `share` is the choice so far."""

    def __init__(self, *, max_entries: int, max_weight: int, sketch: Sketch, random_source: Random) -> None:
        rate = min(1.0, _SAMPLE_ENTRIES / max_entries)
        entries = max(1, round(max_entries * rate))
        self.sampled_below = int(rate * 2**64)
        """Keys whose `spread` is below this are the sample."""
        self._max_weight = max(1, int(max_weight * rate))
        self._miniatures = [
            Miniature(
                share=share,
                max_entries=entries,
                max_weight=self._max_weight,
                sketch=sketch,
                random_source=random_source,
            )
            for share in LADDER
        ]
        self._chosen = self._miniatures[0]
        self._between_looks = max(1, entries // _LOOKS_PER_FILL)
        self._until_look = self._between_looks
        self._requests = 0.0

    @property
    def share(self) -> float:
        return self._chosen.share

    def ask(self, code: int, weight: int) -> bool:
        """A request for a sampled key. True if `share` has changed."""
        if weight <= self._max_weight:
            for miniature in self._miniatures:
                miniature.ask(code, weight)
        self._until_look -= 1
        return self._until_look == 0 and self._look()

    def _look(self) -> bool:
        self._until_look = self._between_looks
        self._requests += self._between_looks
        best = max(self._miniatures, key=lambda miniature: miniature.hits)
        changes = best.hits > self._chosen.hits + _LEAD_SHARE * self._requests
        if changes:
            self._chosen = best
        for miniature in self._miniatures:
            miniature.hits *= _KEPT
        self._requests *= _KEPT
        return changes
