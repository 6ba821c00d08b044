"""What a fault is: a function that breaks the testbed, lasts and mends it, and what clients may see meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.torture.bad_day.conduct import CALM, Allowed
from tests.torture.bad_day.judge import Stored
from tests.torture.bad_day.testbed import Testbed


@dataclass(kw_only=True)
class Day:
    """What a fault works on, and what it leaves for the judge."""

    bed: Testbed
    hot_customer: str
    """The one that is scored most."""
    restored: Callable[[], None]
    """To be called when PostgreSQL may have lost what it had taken."""
    lost_by_restore: list[Stored] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`play` takes the day and the seconds that it lasts; it mends what it broke before it returns or raises."""

    name: str
    play: Callable[[Day, float], None]
    allowed: Allowed = CALM
    least_s: float = 2.0
    usual_s: float = 8.0
    extra_s: float = 0.0
    """What it takes beside its duration."""
    recovers_within_s: float = 30.0
    """From its end until all is well again, at most."""
