"""Which keys the checker's clients use, and how a key's value names the write that it is from."""

import struct
from collections.abc import Sequence
from hashlib import blake2b

from features.checker.history import NO_CONTENT
from mlserve.cache.keys import Key

AROUND, PROFILE, THROUGH = "merchant_risk", "merchant_profile", "customer_activity"
GROUPS = (AROUND, PROFILE, THROUGH)
WIDTH = {AROUND: 6, PROFILE: 2}
"""Numbers of a value, for groups whose rows are written directly."""
HELD_KEYS = 2
"""Only written in transactions that stay open for seconds: everybody else would wait for their rows."""
FEWEST, MOST = 8, 20_000


class Keyspace:
    """`count` keys: of three, two are groups of one merchant and one is a customer's. A history names them by place."""

    def __init__(self, count: int) -> None:
        merchants = max(1, (count - HELD_KEYS) // 3)
        customers = count - HELD_KEYS - 2 * merchants
        self.merchants = [f"checked-m{number}" for number in range(merchants)]
        self.customers = [f"checked-c{number}" for number in range(customers)]
        self.keys: list[Key] = []
        for merchant in self.merchants:
            self.keys += (Key("merchant", merchant, AROUND), Key("merchant", merchant, PROFILE))
        self.keys += (Key("customer", customer, THROUGH) for customer in self.customers)
        self.held = [Key("merchant", f"checked-held{number}", AROUND) for number in range(HELD_KEYS)]
        self.keys += self.held
        self.place = {key: place for place, key in enumerate(self.keys)}


def values_of(group: str, number: int) -> list[float]:
    """What the write of this number puts into a row."""
    return [float(number)] * WIDTH[group]


def content_of(values: Sequence[float] | None) -> int:
    """64 bits that tell one value from another."""
    if values is None:
        return NO_CONTENT
    packed = struct.pack(f"<{len(values)}d", *values)
    return int.from_bytes(blake2b(packed, digest_size=8).digest(), "little") | 1
