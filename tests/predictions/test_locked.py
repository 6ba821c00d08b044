"""Which decisions wait for a lock, for how long, and which do not."""

from dataclasses import dataclass

from predictions.locked import HOLD_S, MAX_HELD, RETRY_LONG_HELD_S, RETRY_S, LockedCustomers, by_customer


@dataclass
class Waiting:
    customer_id: str
    held_since: float | None = None


def test_others_go_on_and_who_is_locked_waits() -> None:
    """Also who comes later for the same customer."""
    locked: LockedCustomers[Waiting] = LockedCustomers()
    first, second, other = Waiting("a"), Waiting("a"), Waiting("b")
    assert locked.hold([first], now=0.0) == []
    assert locked.split([second, other], now=0.1) == ([other], [])
    assert (locked.customers, locked.held, bool(locked)) == (["a"], 2, True)
    assert locked.release(["a"], now=0.2) == ([first, second], [])
    assert (locked.held, bool(locked)) == (0, False)
    assert locked.split([second], now=0.3) == ([second], [])


def test_nobody_waits_for_longer_than_the_limit() -> None:
    """After that, who comes for the customer does not wait at all, until the lock is seen to be gone."""
    locked: LockedCustomers[Waiting] = LockedCustomers()
    first, late = Waiting("a"), Waiting("a")
    locked.hold([first], now=0.0)
    assert locked.release([], now=HOLD_S / 2) == ([], [])
    assert locked.release([], now=HOLD_S) == ([], [first])
    assert locked.split([late], now=HOLD_S) == ([], [late])
    assert locked.held == 0
    assert locked.release(["a"], now=HOLD_S + 1) == ([], [])
    assert not locked


def test_who_finds_one_lock_after_another_does_not_wait_for_ever() -> None:
    """The time counts from the first of them."""
    locked: LockedCustomers[Waiting] = LockedCustomers()
    each = Waiting("a")
    locked.hold([each], now=0.0)
    assert locked.release(["a"], now=HOLD_S / 2) == ([each], [])
    assert locked.hold([each], now=HOLD_S / 2) == []
    assert locked.release([], now=HOLD_S) == ([], [each])


def test_tries_come_soon_while_somebody_waits_and_seldom_otherwise() -> None:
    """And never while nobody is locked."""
    locked: LockedCustomers[Waiting] = LockedCustomers()
    assert locked.wait_s(now=0.0) is None
    locked.hold([Waiting("a")], now=0.0)
    assert locked.wait_s(now=0.0) == RETRY_S
    assert locked.wait_s(now=RETRY_S) == 0.0
    locked.release([], now=HOLD_S)
    assert locked.wait_s(now=HOLD_S) == RETRY_LONG_HELD_S


def test_no_more_wait_than_a_commit_takes_in() -> None:
    """The rest does not keep the threads of its requests."""
    locked: LockedCustomers[Waiting] = LockedCustomers()
    many = [Waiting(f"{number}") for number in range(MAX_HELD + 3)]
    assert locked.hold(many, now=0.0) == many[MAX_HELD:]
    assert locked.held == MAX_HELD
    assert locked.give_up() == many[:MAX_HELD]
    assert not locked


def test_groups_are_in_the_order_of_arrival() -> None:
    """One for each customer."""
    a, b, a2 = Waiting("a"), Waiting("b"), Waiting("a")
    assert by_customer([a, b, a2]) == [[a, a2], [b]]
