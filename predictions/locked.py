"""Customers whose rows somebody else holds: their decisions wait, for a while, and nobody else's do.

A commit takes in the decisions of many customers. If one of them is locked (an operator's open transaction, an import),
all would wait for that one lock. So a commit waits for a lock briefly, and then the decisions of locked customers are
held back while the others are committed. They are tried again until the lock is gone; for those that have been held for
`HOLD_S` it is the spool, from where they follow. Until then further decisions on such a customer are spooled at once:
requests that wait for a lock keep threads of the web process from others.
"""

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

HOLD_S = 0.6
"""Longer than an import holds its locks; short beside what a client waits."""
RETRY_S = 0.1
RETRY_LONG_HELD_S = 1.0
"""When nobody waits any more: the question is only whether the customer's next decision may be committed."""
MAX_HELD = 200
"""Decisions that wait at the same time, as many as a commit takes in; more are spooled at once."""


class OfCustomer(Protocol):
    @property
    def customer_id(self) -> str: ...


class MayWait(OfCustomer, Protocol):
    held_since: float | None
    """Monotonic, in seconds; None for what was never held back."""


C = TypeVar("C", bound=OfCustomer)
W = TypeVar("W", bound=MayWait)


class _Locked(Generic[W]):
    def __init__(self, since: float) -> None:
        self.since = since
        self.waiting: list[W] = []


class LockedCustomers(Generic[W]):
    """Not thread-safe. `now` is monotonic, in seconds."""

    def __init__(self) -> None:
        self._locked: dict[str, _Locked[W]] = {}
        self._held = 0
        self._next_try = 0.0

    def __bool__(self) -> bool:
        """Whether any customer is known to be locked."""
        return bool(self._locked)

    @property
    def customers(self) -> list[str]:
        return list(self._locked)

    @property
    def held(self) -> int:
        """How many wait."""
        return self._held

    def split(self, arrived: Iterable[W], *, now: float) -> tuple[list[W], list[W]]:
        """Those whose customers are not known to be locked, and those that shall not wait. Others are held."""
        free: list[W] = []
        tired: list[W] = []
        for each in arrived:
            if each.customer_id not in self._locked:
                free.append(each)
            elif not self._hold(each, now=now):
                tired.append(each)
        return free, tired

    def hold(self, locked: Iterable[W], *, now: float) -> list[W]:
        """These turned out to be locked. Returns those that shall not wait."""
        tired = []
        for each in locked:
            if each.customer_id not in self._locked:
                self._locked[each.customer_id] = _Locked(now)
                self._next_try = now + RETRY_S
            if not self._hold(each, now=now):
                tired.append(each)
        return tired

    def wait_s(self, *, now: float) -> float | None:
        """How long until they should be tried again; None if nobody is locked."""
        return max(0.0, self._next_try - now) if self._locked else None

    def release(self, free: Iterable[str], *, now: float) -> tuple[list[W], list[W]]:
        """After a try: those of customers that are free now, and those that have waited for long enough."""
        freed: list[W] = []
        for customer_id in free:
            if customer_id in self._locked:
                freed.extend(self._locked.pop(customer_id).waiting)
        tired: list[W] = []
        for locked in self._locked.values():
            tired.extend(each for each in locked.waiting if _is_tired(each, now))
            locked.waiting = [each for each in locked.waiting if not _is_tired(each, now)]
        self._held -= len(freed) + len(tired)
        self._next_try = now + (RETRY_S if self._held else RETRY_LONG_HELD_S)
        return freed, tired

    def give_up(self) -> list[W]:
        """Forgets all; returns those that wait."""
        waiting = [each for locked in self._locked.values() for each in locked.waiting]
        self._locked.clear()
        self._held = 0
        return waiting

    def _hold(self, each: W, *, now: float) -> bool:
        locked = self._locked[each.customer_id]
        if now - locked.since >= HOLD_S or _is_tired(each, now) or self._held >= MAX_HELD:
            return False
        if each.held_since is None:
            each.held_since = now
        locked.waiting.append(each)
        self._held += 1
        return True


def _is_tired(each: MayWait, now: float) -> bool:
    return each.held_since is not None and now - each.held_since >= HOLD_S


def by_customer(waiting: Sequence[C]) -> list[list[C]]:
    """One list for each customer, in the order in which they came."""
    groups: dict[str, list[C]] = {}
    for each in waiting:
        groups.setdefault(each.customer_id, []).append(each)
    return list(groups.values())
