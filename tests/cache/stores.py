"""L1 stores in which every entry weighs the same."""

import random

from mlserve.cache.tinylfu import TinyLfuStore

FLAT = 100


def make_store(max_entries: int, max_bytes: int | None = None) -> TinyLfuStore:
    """Of strings that weigh their length, and 100 at least where no bound in bytes is given."""
    return TinyLfuStore(max_entries, max_bytes or max_entries * FLAT, weigh=len, random_source=random.Random(0))
