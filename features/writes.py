"""How the copies in the cache follow a value that the source has committed.

Each group declares one of three strategies (`FeatureGroup.write`):

* **through**: the new value goes into L2 and into this process's L1 at once. For values that the next request needs.
* **around**: the copies of what changed are dropped, and the next reader loads them. For builds, whose values nobody
  may ask for. A build of a hundred thousand entities that dropped all copies at once would send every request to
  Postgres until the cache is warm again, so the copies go in chunks, at a bounded rate, and the hottest entities last
  and slowest: each of theirs is read again within moments.
* **behind**: the process counts in memory and the source hears of it later (`write_behind.py`).

A reader that had loaded the old value just before the commit may store it after the invalidation; that copy serves
until its own limit, counted from its own `as_of`, as any copy does.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec
import redis

from features.policies import policies_in_force
from mlserve.cache.entry import Entry
from mlserve.cache.hotkeys import read_hot_keys
from mlserve.cache.keys import Key
from mlserve.cache.tiers.base import Entity, LeaseToken
from mlserve.cache.wiring import engine, l2_client

KEYS_PER_SECOND = 20_000
"""Of entities that are not hot: nearly all of their copies, if there are any, are not asked for within seconds."""
HOT_ENTITIES = 1_000
HOT_KEYS_PER_SECOND = 500
"""What a rebuild may add to the reads of Postgres per second, because each of these is read again at once."""
WRITE_LEASE_S = 0.005
"""Longer than Redis takes and short enough for writers who wait for the rows that are held meanwhile."""
_CHUNK = 500
_HOT_CHUNK = 25
_FAILURES_IN_A_ROW = 3
"""After so many L2 is away; to ask for each further chunk would only cost a timeout each."""


class Invalidated(msgspec.Struct, frozen=True):
    """`delivered` keys have no copy in L2 any more; `pending` ones follow when L2 answers, while this process lives."""

    delivered: int = 0
    pending: int = 0


class WriteLeases(msgspec.Struct, frozen=True):
    """What a writer took before its commit, while it held the rows: nobody else can have committed them since.

    `since`: its position in this process's L1. `held_at` (s since 1970): what it writes is newer than all that was
    acknowledged before.
    """

    leases: Mapping[Entity, LeaseToken]
    since: int
    held_at: float


def write_leases(keys: Collection[Key]) -> WriteLeases:
    """Before the commit, holding the rows: with what `write_through` may fill.

    Its leases take those of readers, who may have read the source before this write. Without a lease nothing is put
    into L2, so if L2 does not answer at once this does not wait: other writers wait for the rows.
    """
    cache, policies = engine(), policies_in_force().policies
    since, held_at = cache.l1.begin(), cache.clock.now()
    entities = {key.entity for key in keys if policies[key.group].use_l2 and policies[key.group].proven}
    leases = cache.l2.lease_for_write(entities, timeout_s=WRITE_LEASE_S) if entities else {}
    return WriteLeases(leases, since, held_at)


def write_through(entries: Mapping[Key, Entry], taken: WriteLeases) -> None:
    """Puts values that were just committed into L2 and into this process's L1.

    `taken` before the commit. L2 keeps the newer of two by version. Where it cannot be told, the copy that it holds is
    out of date, so an invalidation is left pending until it can. Groups whose freshness is proven are filled with the
    leases that were taken; without one their copies are withdrawn.
    """
    cache, policies = engine(), policies_in_force().policies
    leases = taken.leases
    into_l1 = {
        key: msgspec.structs.replace(entry, vouched_at=taken.held_at)
        for key, entry in entries.items()
        if policies[key.group].use_l1
    }
    cache.l1.put_many(into_l1, policies, since=taken.since)
    into_l2 = {key: entry for key, entry in entries.items() if policies[key.group].use_l2}
    proven = {key: entry for key, entry in into_l2.items() if policies[key.group].proven}
    leased = {key: entry for key, entry in proven.items() if key.entity in leases}
    if leased and not cache.l2.fill_many(leased, policies, leases):
        cache.pending.remember(list(leased))
    others = {key: entry for key, entry in into_l2.items() if key not in proven}
    if others and not cache.l2.put_many(others, policies):
        cache.pending.remember(list(others))
    withdrawn = [key for key in proven if key not in leased]
    if withdrawn:
        cache.pending.drop(withdrawn)


def drop_copies(keys: Sequence[Key]) -> bool:
    """Drops the copies of a few keys at once. False if L2 could not be told; then it stays pending."""
    cache = engine()
    # L2 first: a reader of this process could take the old copy from there into L1 again.
    told = cache.pending.drop(keys)
    cache.chain.withdraw(keys)
    return told


def write_around(keys: Collection[Key], *, sleep: Callable[[float], None] = time.sleep) -> Invalidated:
    """Drops the copies of `keys`, whose new values are committed, from L2 and from this process's L1.

    Takes as long as the rate demands, so never call it on the path of a request. Nothing is given up: what L2 could
    not be told, also because an exception ended this call, stays pending in this process.
    """
    cache, told, undelivered, failures = engine(), 0, 0, 0
    cold, hot = _by_heat(keys)
    ordered = [*cold, *hot]
    try:
        for chunk, pause_s in _chunks(cold, hot):
            if told:
                sleep(pause_s)
            if drop_copies(chunk):
                failures = 0
            else:
                undelivered += len(chunk)
                failures += 1
            told += len(chunk)
            if failures == _FAILURES_IN_A_ROW:
                break
    finally:
        rest = ordered[told:]
        if rest:
            cache.pending.remember(rest)
            cache.chain.withdraw(rest)
    return Invalidated(delivered=told - undelivered, pending=undelivered + len(rest))


def _by_heat(keys: Collection[Key]) -> tuple[list[Key], list[Key]]:
    """Keys of entities that are not hot, by entity; then those of hot ones, the hottest last."""
    cache = engine()
    try:
        hottest = read_hot_keys(l2_client(), limit=HOT_ENTITIES, now=cache.clock.now())
    except redis.RedisError:
        hottest = []  # L2 will not be told either
    place = {(hot.kind, hot.id): -rank for rank, hot in enumerate(hottest)}
    hot = [key for key in keys if (key.kind, key.id) in place]
    cold = [key for key in keys if (key.kind, key.id) not in place]
    return sorted(cold), sorted(hot, key=lambda key: (place[key.kind, key.id], key))


def _chunks(cold: Sequence[Key], hot: Sequence[Key]) -> Iterator[tuple[Sequence[Key], float]]:
    """Each chunk with the pause in seconds that comes before it."""
    for keys, size, rate in ((cold, _CHUNK, KEYS_PER_SECOND), (hot, _HOT_CHUNK, HOT_KEYS_PER_SECOND)):
        for start in range(0, len(keys), size):
            yield keys[start : start + size], size / rate
