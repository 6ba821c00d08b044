"""What a score does about embeddings of two builds: it counts the case and has the copies behind it read anew.

After a build the copies of both sides are dropped, but not all at one moment, and a copy that was on its way into the
cache when its row changed may lie there until its limit. For a merchant whom many pay that would be hours of defaults;
with this it is about one score in each process.
"""

from collections.abc import Mapping
from typing import Final

from features import source
from features.definitions import EMBEDDINGS
from mlserve.cache.outcome import Outcome
from mlserve.cache.policy import PolicyBook
from mlserve.cache.wiring import engine
from mlserve.observability import metrics

MIN_COPY_AGE_S: Final = 5.0
"""Younger copies are left alone: if what was just read differs, it is the source that holds two builds."""


def note_differing_builds(outcomes: Mapping[str, Outcome], *, book: PolicyBook) -> None:
    """For a score whose embeddings were of two builds. Returns at once. `outcomes` by group."""
    metrics.EMBEDDING_BUILDS_DIFFER.inc()
    cache = engine()
    read_before = cache.clock.now() - MIN_COPY_AGE_S
    entries = {outcomes[group].key: outcomes[group].entry for group in EMBEDDINGS}
    old = [key for key, entry in entries.items() if entry is not None and entry.written_at <= read_before]
    if old:
        cache.refresher.refresh(old, book.policies, source.loader(cache.l3_breaker, cache.l3_limiter))
