"""L2: Redis, shared by all processes. One hash per entity, one field per feature group, one round trip per look-up.

django-redis supplies the alias, the pool and the timeouts; hash commands and the script go through the redis-py
client underneath. Every error of the network or the server is translated here, once: into a reason per key, a report
to the breaker and a count. Nothing is raised.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Any

import redis

from mlserve.cache.breaker import Breaker
from mlserve.cache.codec import decode, encode
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, redis_name
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.stats import Stats
from mlserve.cache.tiers.base import Found


@cache
def _script(name: str) -> str:
    return files("mlserve.cache").joinpath("lua", name).read_text(encoding="utf-8")


def _by_entity(keys: Sequence[Key]) -> dict[bytes, list[Key]]:
    grouped: dict[bytes, list[Key]] = defaultdict(list)
    names: dict[tuple[str, str], bytes] = {}
    for key in keys:
        entity = (key.kind, key.id)
        name = names.get(entity)
        if name is None:
            name = names[entity] = redis_name(key.kind, key.id)
        grouped[name].append(key)
    return grouped


def _unlink(name: bytes, client: "redis.Redis") -> list[Any]:
    return [client.unlink(name)]


class L2Tier:
    """Thread-safe. `connect` returns the redis-py client of this process."""

    tier = Tier.L2

    def __init__(self, connect: Callable[[], "redis.Redis"], breaker: Breaker, stats: Stats) -> None:
        self._connect = connect
        self._stats = stats
        self.breaker = breaker

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        if not self.breaker.allow():
            return dict.fromkeys(keys, MissReason.BREAKER)
        entities = _by_entity(keys)

        def ask(client: "redis.Redis") -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for name, of_entity in entities.items():
                pipeline.execute_command("HMGET", name, *[key.group for key in of_entity])
            return pipeline.execute(raise_on_error=False)

        replies = self._guarded(ask)
        if replies is None:
            return dict.fromkeys(keys, MissReason.TIMEOUT)
        found: Found = {}
        for (name, of_entity), reply in zip(entities.items(), replies, strict=True):
            # A reply that is an error (WRONGTYPE: somebody else's value under our name) is a torn record, no outage.
            records = reply if isinstance(reply, list) else [b""] * len(of_entity)
            for key, record in zip(of_entity, records, strict=True):
                if record is None:
                    found[key] = MissReason.COLD
                else:
                    policy = policies[key.group]
                    held = decode(record, key, name, policy.schema)
                    found[key] = MissReason.DECODE if isinstance(held, Entry) and not policy.fits(held) else held
        return found

    peek_many = get_many

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        if not entries:
            return True
        if not self.breaker.allow():
            self._stats.fill_refused(Tier.L2, "breaker", len(entries))
            return False
        entities = _by_entity(list(entries))

        def fill(client: "redis.Redis") -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for name, of_entity in entities.items():
                arguments: list[Any] = []
                for key in of_entity:
                    policy, entry = policies[key.group], entries[key]
                    keep_ms = int(policy.keep_for_s(entry) * 1000)
                    arguments += (key.group, encode(key, name, policy.schema, entry), keep_ms)
                pipeline.eval(_script("fill.lua"), 1, name, *arguments)
            return pipeline.execute(raise_on_error=False)

        replies = self._guarded(fill)
        if replies is None:
            self._stats.fill_refused(Tier.L2, "timeout", len(entries))
            return False
        errors = sum(isinstance(reply, redis.RedisError) for reply in replies)
        newer = sum(reply for reply in replies if isinstance(reply, int))
        if errors:
            self._stats.fill_refused(Tier.L2, "error", errors)
        if newer:
            self._stats.fill_refused(Tier.L2, "newer", newer)
        return not errors

    def drop_many(self, keys: Sequence[Key]) -> bool:
        """Not shed by the breaker: an invalidation that cannot be delivered must be known to be pending."""
        entities = _by_entity(keys)

        def drop(client: "redis.Redis") -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for name, of_entity in entities.items():
                pipeline.execute_command("HDEL", name, *[key.group for key in of_entity])
            return pipeline.execute(raise_on_error=False)

        replies = self._guarded(drop)
        if replies is None:
            return False
        for name, reply in zip(entities, replies, strict=True):
            if isinstance(reply, redis.ResponseError):  # not a hash: not ours, so it goes altogether
                self._guarded(partial(_unlink, name))
        return True

    def ping(self) -> None:
        """The breaker's probe."""
        self._guarded(lambda client: [client.ping()])

    def _guarded(self, command: Callable[["redis.Redis"], list[Any]]) -> list[Any] | None:
        """The replies, or None if the server could not be reached in time, which the breaker then knows."""
        try:
            replies = command(self._connect())
        except redis.exceptions.MaxConnectionsError:
            # Our own pool is exhausted: load, not death. The key goes without L2; the breaker stays as it is.
            return None
        except redis.exceptions.TimeoutError:
            self.breaker.failure(timed_out=True)
            return None
        except (redis.RedisError, OSError):
            self.breaker.failure(timed_out=False)
            return None
        self.breaker.success()
        return replies
