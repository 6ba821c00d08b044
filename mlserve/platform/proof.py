"""Whether L2 can prove freshness at this moment, judged by the watermarks of its partitions.

Read on django-redis' client and not through the engine: the commands that ask have no engine of their own.
"""

import msgspec
import redis
from django.conf import settings
from django_redis import get_redis_connection
from redis.exceptions import RedisClusterException

from mlserve.cache.seal import make_seal
from mlserve.cache.watermark import Watermark, name_of, parse


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Of `partitions` watermarks some are `missing`, some `foreign`: bytes that are none, or not sealed with our key.

    `oldest` is the watermark that counts: of the partition that is furthest behind. None unless all could be read.
    `error` says why L2 could not be asked.
    """

    partitions: int
    missing: int = 0
    foreign: int = 0
    oldest: Watermark | None = None
    error: str = ""

    def lag_s(self, now: float) -> float | None:
        """Every change older than this is known to L2."""
        return None if self.oldest is None else now - self.oldest.safe_time


def read_proof() -> Proof:
    """One round trip a partition. Never raises."""
    partitions: int = settings.CACHE_PARTITIONS
    seal = make_seal(settings.CACHE_MAC_KEY)
    names = [name_of(partition) for partition in range(partitions)]
    try:
        client = get_redis_connection("l2")
        texts = [client.get(name) for name in names]
    except redis.ResponseError:  # WRONGTYPE: somebody else's value under our name
        return Proof(partitions=partitions, foreign=1)
    except (redis.RedisError, RedisClusterException, OSError) as error:
        return Proof(partitions=partitions, error=str(error) or type(error).__name__)
    held = {name: text for name, text in zip(names, texts, strict=True) if text is not None}
    marks = [parse(text, name, seal) for name, text in held.items()]
    readable = [mark for mark in marks if mark is not None]
    return Proof(
        partitions=partitions,
        missing=partitions - len(held),
        foreign=len(held) - len(readable),
        oldest=min(readable, key=lambda mark: mark.safe_time) if len(readable) == partitions else None,
    )


def why_unproven(proof: Proof, *, now: float, bound_s: float) -> str:
    """In plain words, what keeps L2 from proving freshness; empty if nothing does."""
    if proof.error:
        return f"L2 does not answer: {proof.error}"
    if proof.foreign:
        return f"{proof.foreign} of {proof.partitions} watermarks are none of ours"
    if proof.missing:
        return f"{proof.missing} of {proof.partitions} watermarks are missing"
    lag_s = proof.lag_s(now)
    assert lag_s is not None, "all of them could be read"
    return f"no relay has moved the watermark for {lag_s:,.1f} s" if lag_s > bound_s else ""
