"""`l2`: all six groups of a customer and a merchant out of Redis, against one bare MGET of the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from secrets import token_hex

import redis

from benchmarks.contest import BenchmarkFailed, Contest, Progress, per_call
from benchmarks.ratio import Compare, Target
from features.definitions import CUSTOMER_ACTIVITY, GROUPS, MODEL_FEATURES
from mlserve.cache.breaker import Breaker
from mlserve.cache.clock import SystemClock
from mlserve.cache.codec import encode
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.cache.tiers.wire import SingleNodeWire
from mlserve.cache.wiring import l2_client
from mlserve.observability.recorder import Recorder

RECENT_TRANSACTIONS = 50
"""Of the customer, in the 31 days that the activity group keeps: the simulation's mean."""
_READ = [
    group for group in GROUPS.values() if group.name in {name for f in MODEL_FEATURES.values() for name in f.groups}
]
"""The groups that the model needs of a customer and a merchant."""
_KEPT_S = 600
"""Our keys are deleted in the end; Redis forgets them after this time if this process is killed before."""


@contextmanager
def open_l2(_progress: Progress) -> Iterator[list[Contest]]:
    """Uses the cache's own Redis with keys of its own, which it deletes."""
    clock, random = SystemClock(), Random(1)
    client = l2_client()
    breaker = Breaker("bench", clock, random_source=random)
    tier = L2Tier(SingleNodeWire(l2_client, breaker), Recorder())
    policies = {
        group.name: Policy(
            namespace=group.name,
            schema=group.schema,
            fresh_for_s=_KEPT_S,
            grace_s=0,
            negative_ttl_s=0,
            fixed_values=len(group.values),
            repeated_values=len(group.repeated),
        )
        for group in _READ
    }
    token = token_hex(8)
    keys = [Key(group.entity, f"bench-{token}", group.name) for group in _READ]
    entries = {key: _entry(key, random, now=clock.now()) for key in keys}
    records = {
        f"mlserve:bench:{{0}}:{token}:{key.group}".encode(): encode(
            key, names_of(key.kind, key.id, 1).digest, policies[key.group].schema, entry
        )
        for key, entry in entries.items()
    }
    names = list(records)

    def check() -> None:
        if breaker.opened_count:
            raise BenchmarkFailed("l2: Redis did not answer in time while it was measured, so look-ups were shed")
        if tier.get_many(keys, policies) != entries or client.mget(names) != list(records.values()):
            raise BenchmarkFailed("l2: the two sides did not return what was put there")

    try:
        try:
            tier.put_many(entries, policies)
            for name, record in records.items():
                client.set(name, record, ex=_KEPT_S)
            check()
            yield [
                Contest(
                    name="l2",
                    ours_is="L2Tier.get_many of the six groups of a customer and a merchant, decoded and checked",
                    other_is="one redis-py MGET of the same bytes, on the same connection pool, not decoded",
                    unit="us/call",
                    compare=Compare.OURS_OVER_OTHER,
                    target=Target(1.5, at_most=True),
                    ours=per_call(lambda: tier.get_many(keys, policies)),
                    other=per_call(lambda: client.mget(names)),
                    check=check,
                )
            ]
        finally:
            client.delete(*names, *{names_of(key.kind, key.id, 1).record for key in keys})
    except redis.RedisError as error:
        raise BenchmarkFailed(f"l2: Redis does not answer or refuses: {error}") from error


def _entry(key: Key, random: Random, *, now: float) -> Entry:
    values = made_up_values(key.group, random, now=now)
    now = round(now, 3)  # to the microsecond, as records are
    return Entry(1_000_000, now, now, values)


def made_up_values(group_name: str, random: Random, *, now: float) -> tuple[float, ...]:
    """As long as the group's really are."""
    group = GROUPS[group_name]
    if group is not CUSTOMER_ACTIVITY:
        return tuple(random.uniform(-1, 1000) for _ in group.values)
    values = [now - 31 * 86_400]
    for _ in range(RECENT_TRANSACTIONS):
        values += (
            now - random.randrange(31 * 86_400),
            round(random.gammavariate(2, 25), 2),
            float(random.getrandbits(32)),
        )
    return tuple(values)
