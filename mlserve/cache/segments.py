"""Which entries stay in a full memory, by recency and frequency: the W-TinyLFU rule.

New entries enter a window that evicts in LRU order. Who leaves the window meets the next victim of the main part, and
whichever was asked for more often stays. So a scan passes through the window and leaves the main part alone, and a
loop larger than the memory keeps a part of itself, where LRU would throw out each key just before it is needed. The
main part is a segmented LRU: who is hit on probation is protected, who is pushed out of there is on probation again.
Frequencies come from a count-min sketch of counters up to 15, halved from time to time so that the past fades.

How large the window should be depends on the traffic (`window.py`); here it may change at any time, and entries move
over a few with every write.

Einziger, Friedman, Manes: TinyLFU, a highly efficient cache admission policy. ACM Transactions on Storage, 2017.
"""

from collections import OrderedDict
from collections.abc import Hashable
from random import Random
from typing import Any

import msgspec

WINDOW, PROBATION, PROTECTED, GONE = range(4)

_MOST_COUNT = 15
_COUNTERS_PER_ENTRY = 8
"""Bytes: with them, few of the keys of one period of counting share all four counters with another."""
_HALVED = bytes(count // 2 for count in range(256))
_PROTECTED_SHARE = 0.8
"""Of the main part, as in the paper."""
_WARM_COUNT = 6
_LUCK = 1 / 128
"""A candidate that was asked for this often is let in with this chance, lead or not: who knows keys that collide
with a victim's counters could otherwise keep everybody out for as long as they are asked for."""
_SHIFTS_PER_WRITE = 16
"""When the window has shrunk: enough to be done soon, few enough not to be felt in one write."""
_64_BITS = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def spread(key: Hashable) -> int:
    """64 bits of a key's hash, mixed: small numbers in a row differ in high bits as well."""
    code = hash(key) & _64_BITS
    return (code ^ code >> 32) * _GOLDEN & _64_BITS


class Node(msgspec.Struct, eq=False, gc=False):
    """A held entry. Compared and hashed by identity; in no reference cycle, so the collector need not visit it."""

    key: Hashable
    value: Any
    weight: int
    code: int
    """`spread` of the key."""
    place: int = GONE


class Sketch:
    """How often keys were asked for lately, approximately and never too low: four counters a key in one table."""

    def __init__(self, entries: int) -> None:
        size = 1 << (max(entries, 16) * _COUNTERS_PER_ENTRY - 1).bit_length()
        self._mask = size - 1
        self._counts = bytearray(size)
        self.added = 0
        """Since the beginning, halved with the counts."""

    def add(self, code: int) -> None:
        counts, mask, step = self._counts, self._mask, code >> 32 | 1
        first = code & mask
        second = first + step & mask
        third = second + step & mask
        fourth = third + step & mask
        if counts[first] < _MOST_COUNT:
            counts[first] += 1
        if counts[second] < _MOST_COUNT:
            counts[second] += 1
        if counts[third] < _MOST_COUNT:
            counts[third] += 1
        if counts[fourth] < _MOST_COUNT:
            counts[fourth] += 1
        self.added += 1

    def count(self, code: int) -> int:
        counts, mask, step = self._counts, self._mask, code >> 32 | 1
        first = code & mask
        second = first + step & mask
        third = second + step & mask
        return min(counts[first], counts[second], counts[third], counts[third + step & mask])

    def halve(self) -> None:
        self._counts = self._counts.translate(_HALVED)
        self.added //= 2


class Segments:
    """Window, probation and protected, each in LRU order. Not thread-safe; every operation takes constant time."""

    def __init__(
        self, *, max_entries: int, max_weight: int, sketch: Sketch, random_source: Random, window_share: float
    ) -> None:
        self._max_entries = max_entries
        self._max_weight = max_weight
        self._sketch = sketch
        self._random = random_source
        self._lists: tuple[OrderedDict[Node, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self._weights = [0, 0, 0]
        self._entries = 0
        self.weight = 0
        self.resize_window(window_share)

    def resize_window(self, share: float) -> None:
        """Of the whole weight. Nothing moves yet: `make_room` and `hit` bring the entries over."""
        self._most_window = max(1, int(self._max_weight * share))
        self._most_main = self._max_weight - self._most_window
        self._most_protected = int(self._most_main * _PROTECTED_SHARE)

    def add(self, node: Node) -> None:
        """As the newest of the window; `make_room` must follow."""
        node.place = WINDOW
        self._lists[WINDOW][node] = None
        self._weights[WINDOW] += node.weight
        self._entries += 1
        self.weight += node.weight

    def remove(self, node: Node) -> None:
        del self._lists[node.place][node]
        self._weights[node.place] -= node.weight
        self._entries -= 1
        self.weight -= node.weight
        node.place = GONE

    def reweigh(self, node: Node, weight: int) -> None:
        """One that has grown goes through the window as if it were new, so that it is not its own victim."""
        grown = weight > node.weight
        self._weights[node.place] += weight - node.weight
        self.weight += weight - node.weight
        node.weight = weight
        if grown:
            self._move(node, WINDOW)

    def hit(self, node: Node) -> None:
        place = node.place
        if place == WINDOW:
            self._lists[WINDOW].move_to_end(node)
        elif self.weight - self._weights[WINDOW] > self._most_main:
            self._move(node, WINDOW)  # the main part has to shrink: who is in use moves over, the others are evicted
        elif place == PROTECTED:
            self._lists[PROTECTED].move_to_end(node)
        else:
            self._move(node, PROTECTED)
            for _ in range(_SHIFTS_PER_WRITE):
                if self._weights[PROTECTED] <= self._most_protected:
                    break
                self._move(next(iter(self._lists[PROTECTED])), PROBATION)

    def make_room(self) -> list[Node]:
        """Evict until the bounds hold; who had to go. The newest of the window is not among them."""
        candidate = self._shrink_window()
        evicted: list[Node] = []
        while self.weight > self._max_weight or self._entries > self._max_entries:
            loser = self._loser(candidate)
            if loser is candidate:
                candidate = None
            self.remove(loser)
            evicted.append(loser)
        return evicted

    def _shrink_window(self) -> Node | None:
        """The last that left it: the candidate."""
        window, candidate = self._lists[WINDOW], None
        for _ in range(_SHIFTS_PER_WRITE):
            if self._weights[WINDOW] <= self._most_window or len(window) <= 1:
                break
            candidate = next(iter(window))
            self._move(candidate, PROBATION)
        return candidate

    def _loser(self, candidate: Node | None) -> Node:
        victim = self._victim(candidate)
        if victim is None:
            return candidate or next(iter(self._lists[WINDOW]))
        return victim if candidate is None or self._admits(candidate, victim) else candidate

    def _victim(self, candidate: Node | None) -> Node | None:
        """Next to go out of the main part, the candidate apart, which is the last on probation."""
        for part in (self._lists[PROBATION], self._lists[PROTECTED]):
            oldest = next(iter(part), None)
            if oldest is not None and oldest is not candidate:
                return oldest
        return None

    def _admits(self, candidate: Node, victim: Node) -> bool:
        count = self._sketch.count(candidate.code)
        if count > self._sketch.count(victim.code):
            return True
        return count >= _WARM_COUNT and self._random.random() < _LUCK

    def _move(self, node: Node, place: int) -> None:
        weights, weight = self._weights, node.weight
        del self._lists[node.place][node]
        weights[node.place] -= weight
        self._lists[place][node] = None
        weights[place] += weight
        node.place = place
