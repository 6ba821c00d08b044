"""What each key may still ask for, in this process: units held ahead, so that a request need not ask Redis for one.

Asking Redis for every request would add a round trip to an answer that takes none. So a process holds a small part of
a key's bucket, spends it without asking, and renews it in the background. The bucket counts what is held as if it were
still in it (`lua/bucket.lua`): in any span of time all processes together spend no more than the burst and what flows
in during it. The price is the other way round: units that one process holds are, for a third of a second at most after
its last request, not there for another. So no more than a quarter of the burst is held, and nothing at all of
bursts under `_SMALLEST_SHARED`: of those, each request asks Redis.

A refusal is remembered until the units would be there: a client that hammers on costs Redis nothing.

Without Redis each process lets through its share: the limit divided by the number of processes that were using the key
when Redis last said so. Processes that share unevenly let through less; those that nobody knew of, more. Refusing
everything would turn an outage of a cache into one of the service; letting everything through would remove
protection at the worst of times.
"""

import threading
from math import ceil, floor
from typing import Final, Protocol

import msgspec

from mlserve.api.limit import Limit
from mlserve.api.shared_bucket import Grant, Wish
from mlserve.cache.clock import Clock

HELD_FOR_S: Final = 1.0
"""From the question on: afterwards Redis may have let them flow in again."""
POLL_S: Final = 0.05
_RENEW_BEFORE_S: Final = 0.5
_IDLE_S: Final = 0.3
"""Without a request for so long, a process gives back what it holds."""
_FORGOTTEN_S: Final = 60.0
_AHEAD_S: Final = 0.2
"""Of the sustained rate: several polls' worth."""
_LARGEST_SHARE: Final = 4
"""A fourth of the burst is held by one process at most."""
_SMALLEST_SHARED: Final = 2 * _LARGEST_SHARE


class Taken(msgspec.Struct, frozen=True, gc=False):
    """`remaining`: units that could be taken now, as far as this process knows. `more_in_s`: until it is one more.

    A full bucket gets no more: 0. `retry_after_s` is no less. `alone`: decided without Redis.
    """

    allowed: bool
    remaining: int
    more_in_s: float
    retry_after_s: float = 0.0
    alone: bool = False


class Buckets(Protocol):
    """`SharedBuckets`, whose words these are."""

    def ask(self, wishes: list[Wish]) -> list[Grant | None]: ...


class Allowances:
    """Of all keys of this process that have a limit. Thread-safe."""

    def __init__(self, buckets: Buckets, clock: Clock) -> None:
        self._buckets = buckets
        self._clock = clock
        self._of: dict[str, _Allowance] = {}
        self._changing = threading.Lock()

    def take(self, key: str, limit: Limit, *, units: int = 1) -> Taken:
        """Takes all units or none. More than the burst are never there: `retry_after_s` is then infinite."""
        allowance = self._of.get(key)
        if allowance is None or allowance.limit != limit:
            allowance = self._made(key, limit)
        return allowance.take(units, self._buckets, self._clock)

    def poll(self) -> None:
        """Renews what is being used, gives back what is not: one round trip for all keys. Not more than one at once."""
        now = self._clock.monotonic()
        asked: list[tuple[_Allowance, Wish]] = []
        try:
            for key, allowance in list(self._of.items()):
                if now - allowance.used_at > _FORGOTTEN_S:
                    with self._changing:
                        self._of.pop(key, None)
                elif allowance.asking.acquire(blocking=False):
                    wish = allowance.wish(now)
                    if wish is None:
                        allowance.asking.release()
                    else:
                        asked.append((allowance, wish))
            if asked:
                grants = self._buckets.ask([wish for _, wish in asked])
                for (allowance, _), grant in zip(asked, grants, strict=True):
                    allowance.receive(grant, now)
        finally:
            for allowance, _ in asked:
                allowance.asking.release()

    def _made(self, key: str, limit: Limit) -> "_Allowance":
        with self._changing:
            allowance = self._of.get(key)
            if allowance is None or allowance.limit != limit:
                # What the old one holds is not spent any more, and Redis forgets it.
                allowance = self._of[key] = _Allowance(key, limit, self._clock.monotonic())
            return allowance


class _Allowance:
    """Of one key. `asking` is held from a question to its answer: Redis keeps one figure for each process."""

    def __init__(self, key: str, limit: Limit, now: float) -> None:
        self.key = key
        self.limit = limit
        self.used_at = now
        self.asking = threading.Lock()
        share = limit.burst // _LARGEST_SHARE
        self._most = min(max(1, ceil(limit.per_s * _AHEAD_S)), share) if limit.burst >= _SMALLEST_SHARED else 0
        self._lock = threading.Lock()
        self._held = 0
        self._held_until = now
        self._left = float(limit.burst)
        self._left_at = now
        self._refused_until = now
        self._refused_units = 0
        self._holders = 1
        self._alone: _Share | None = None

    def take(self, units: int, buckets: Buckets, clock: Clock) -> Taken:
        now = clock.monotonic()
        with self._lock:
            taken = self._from_held(units, now)
        if taken is not None:
            return taken
        with self.asking:  # one asks, the others find what it brought
            now = clock.monotonic()
            with self._lock:
                taken = self._from_held(units, now)
                if taken is not None:
                    return taken
                own, self._held = self._held, 0
            # What is at hand is reported as held until it is spent: it stays ours if the rest is refused.
            wish = Wish(self.key, self.limit, held=own, need=units - own, ahead=self._most)
            (grant,) = buckets.ask([wish])
            if grant is None or not grant.granted:
                with self._lock:
                    self._held += own
            self.receive(grant, now)
            with self._lock:
                if grant is None:
                    return self._from_share(units, clock.monotonic())
                if grant.granted:
                    return self._taken(now)
                self._refused_until, self._refused_units = now + grant.wait_s, units
                return self._refused(now, grant.wait_s)

    def wish(self, now: float) -> Wish | None:
        """What to ask for in the background, if anything."""
        with self._lock:
            self._forget_void(now)
            if not self._most or self._alone is not None:
                return None
            if now - self.used_at > _IDLE_S:
                back, self._held = self._held, 0
                return Wish(self.key, self.limit, back=back) if back else None
            if self._held <= self._most // 2 or self._held_until - now < _RENEW_BEFORE_S:
                return Wish(self.key, self.limit, held=self._held, ahead=self._most - self._held)
            return None

    def receive(self, grant: Grant | None, asked_at: float) -> None:
        """Units ahead, and what is known of the bucket."""
        if grant is None:
            return
        with self._lock:
            self._held += grant.ahead
            self._held_until = asked_at + HELD_FOR_S
            self._left, self._left_at = float(grant.left), asked_at
            self._holders = grant.holders
            self._alone = None

    # --- with the lock ---

    def _from_held(self, units: int, now: float) -> Taken | None:
        self.used_at = now
        self._forget_void(now)
        if self._held >= units:
            self._held -= units
            return self._taken(now)
        if units > self.limit.burst:
            return self._refused(now, float("inf"))
        if self._refused_until > now and units >= self._refused_units:
            return self._refused(now, self._refused_until - now)
        return None

    def _forget_void(self, now: float) -> None:
        if now >= self._held_until:
            self._held = 0

    def _from_share(self, units: int, now: float) -> Taken:
        if self._alone is None:
            self._alone = _Share(self.limit, self._holders, self._left_now(now), now)
        wait_s = self._alone.take(units, now)
        left, most = self._alone.left, self._alone.most
        return Taken(wait_s == 0, max(0, int(left)), _more_in_s(left, most, self._alone.per_s), wait_s, alone=True)

    def _taken(self, now: float) -> Taken:
        return self._told(True, now, 0.0)

    def _refused(self, now: float, retry_after_s: float) -> Taken:
        return self._told(False, now, retry_after_s)

    def _told(self, allowed: bool, now: float, retry_after_s: float) -> Taken:
        left = min(float(self.limit.burst), self._left_now(now) + self._held)
        more_in_s = _more_in_s(left, self.limit.burst, self.limit.per_s)
        return Taken(allowed, int(left), more_in_s, retry_after_s)

    def _left_now(self, now: float) -> float:
        return min(float(self.limit.burst), self._left + (now - self._left_at) * self.limit.per_s)


def _more_in_s(left: float, most: float, per_s: float) -> float:
    """Until the next whole unit. A debt has to flow in first."""
    return max(0.0, min(max(0, floor(left)) + 1, most) - left) / per_s


class _Share:
    """This process' part of a limit while Redis is away. A request for more than it holds leaves a debt."""

    def __init__(self, limit: Limit, holders: int, left: float, now: float) -> None:
        self.per_s = limit.per_s / holders
        self.most = max(1.0, limit.burst / holders)
        self.left = min(self.most, left / holders)
        self._at = now

    def take(self, units: int, now: float) -> float:
        """0.0 if they are taken, else the seconds until they may be."""
        self.left = min(self.most, self.left + (now - self._at) * self.per_s)
        self._at = now
        wanted = min(float(units), self.most)
        if self.left < wanted:
            return (wanted - self.left) / self.per_s
        self.left -= units
        return 0.0
