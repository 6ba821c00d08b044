"""How much a key may ask for: its own limit, or the one that the settings give to keys without."""

from typing import Final

import msgspec
from django.conf import settings

MOST_PER_S: Final = 1_000_000
"""Of both fields. Beyond it the whole service is the limit."""


class Limit(msgspec.Struct, frozen=True, gc=False):
    """A bucket that holds `burst` units, into which `per_s` units flow each second. Both are above 0."""

    per_s: int
    burst: int


def limit_in_force(*, per_s: int | None, burst: int | None) -> Limit | None:
    """What a key with these fields may ask for; None: as much as it likes.

    An empty field takes the default of the settings. A burst that nobody names is what flows in within a second.
    """
    rate = settings.RATE_LIMIT_PER_S if per_s is None else per_s
    if not rate:
        return None
    size = burst or (settings.RATE_LIMIT_BURST if per_s is None else 0)
    return Limit(rate, size or rate)


def limit_in_words(*, rate_per_s: int | None, burst: int | None) -> str:
    """For people: what is in force, whether the key or the settings say so."""
    limit = limit_in_force(per_s=rate_per_s, burst=burst)
    whose = " by default" if rate_per_s is None else ""
    return f"none{whose}" if limit is None else f"{limit.per_s}/s, {limit.burst} at once{whose}"
