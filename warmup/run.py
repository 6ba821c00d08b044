"""Puts copies into L2 before anybody asks for them: peek at L2, read what it lacks from Postgres, put it there.

Warming must never be what takes Postgres down: one statement at a time, so many keys a second, and an end as soon as
L2 or Postgres stops answering. A run that was cut short costs nothing but the next run's time.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec
import redis

from features.policies import policies_in_force
from features.progress import Progress, silent
from features.source import loader
from mlserve.cache.loading import SourceUnavailable
from mlserve.cache.refresher import renew
from mlserve.cache.wiring import Engine, engine, l2_client
from mlserve.observability import metrics
from warmup.only_one import only_one
from warmup.plan import in_chunks, keys_to_load, l2_answered, pause_s
from warmup.sources import WarmEntity, hottest, keys_of, most_active

ENTITIES_PER_TRIP: Final = 64
"""Of L2 and of Postgres. More would not fit into the time that L2 is given to answer while it also serves requests."""
KEYS_PER_SECOND: Final = 20_000
"""Read from Postgres; about a third of what one connection delivers."""
REFRESH_HORIZON_S: Final = 25.0
"""Two intervals of the hot keys' refresh and a little: a run that comes late or is lost does no harm."""
WARM_HORIZON_S: Final = 30.0

MOST_ACTIVE_LIMIT: Final = 5_000
HOT_LIMIT: Final = 1_000
HIGHEST_LIMIT: Final = 1_000_000

Source = Literal["most_active", "hot"]


class WarmReport(msgspec.Struct, kw_only=True):
    """What a run did. `stopped` says why it ended early, or is empty.

    `keys_fresh` were held and stay fresh, `keys_loaded` were read from Postgres, `keys_put` of them arrived in L2;
    `keys_elsewhere` were being loaded, or had just been, by somebody else.
    """

    source: Source
    entities: int = 0
    keys_asked: int = 0
    keys_fresh: int = 0
    keys_loaded: int = 0
    keys_elsewhere: int = 0
    keys_put: int = 0
    seconds: float = 0.0
    stopped: str = ""


def warm_most_active(*, limit: int, now: datetime, progress: Progress = silent) -> WarmReport:
    """Warms the customers and merchants with the most transactions in the recent ledger, `limit` of each.

    Idempotent. Raises ValueError for a limit that is none, Django's database errors if the ledger cannot be read.
    """
    check_limit(limit)
    with only_one("warm_most_active") as granted:
        if not granted:
            return _refused("most_active")
        return _warm(
            most_active(limit=limit, now=now), source="most_active", horizon_s=WARM_HORIZON_S, progress=progress
        )


def refresh_hot_keys(*, limit: int, now: datetime, progress: Progress = silent) -> WarmReport:
    """Renews the copies of the `limit` hottest entities that would expire before the next run or two.

    Idempotent. Raises ValueError for a limit that is none; with L2 away the report says so.
    """
    check_limit(limit)
    with only_one("refresh_hot_keys") as granted:
        if not granted:
            return _refused("hot")
        try:
            entities = hottest(l2_client(), limit=limit, now=now.timestamp())
        except redis.RedisError as error:
            return WarmReport(source="hot", stopped=f"l2 does not say what is hot: {type(error).__name__}")
        return _warm(entities, source="hot", horizon_s=REFRESH_HORIZON_S, progress=progress)


def check_limit(limit: object) -> None:
    """Raises ValueError unless `limit` is a whole number from 1 to `HIGHEST_LIMIT`."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= HIGHEST_LIMIT:
        raise ValueError(f"limit: {str(limit)[:40]!r} is not a whole number from 1 to {HIGHEST_LIMIT:,}")


def _refused(source: Source) -> WarmReport:
    return WarmReport(source=source, stopped="another run is under way")


def _warm(entities: Sequence[WarmEntity], *, source: Source, horizon_s: float, progress: Progress) -> WarmReport:
    cache = engine()
    report = WarmReport(source=source, entities=len(entities))
    stage = "warm-up" if source == "most_active" else "hot keys"
    started = cache.clock.monotonic()
    progress(stage, 0.0)
    for done, chunk in enumerate(in_chunks(entities, ENTITIES_PER_TRIP)):
        if not _warm_chunk(cache, chunk, report, horizon_s=horizon_s):
            break
        progress(stage, min(1.0, (done + 1) * ENTITIES_PER_TRIP / len(entities)))
        elapsed_s = cache.clock.monotonic() - started
        time.sleep(pause_s(keys_loaded=report.keys_loaded, elapsed_s=elapsed_s, keys_per_second=KEYS_PER_SECOND))
    report.seconds = round(cache.clock.monotonic() - started, 3)
    metrics.WARMED_KEYS.labels(source).inc(report.keys_put)
    return report


def _warm_chunk(cache: Engine, chunk: Sequence[WarmEntity], report: WarmReport, *, horizon_s: float) -> bool:
    """False if there is no use in going on; the report then says why."""
    policies = policies_in_force().policies
    keys = [key for entity in chunk for key in keys_of(entity)]
    held = cache.l2.peek_many(keys, policies)
    if not l2_answered(held):
        report.stopped = "l2 does not answer"
        return False
    missing = keys_to_load(held, policies=policies, now=cache.clock.now(), horizon_s=horizon_s)
    report.keys_asked += len(keys)
    report.keys_fresh += len(keys) - len(missing)
    if not missing:
        return True
    try:
        renewed = renew(
            missing,
            l2=cache.l2,
            policies=policies,
            loader=loader(cache.l3_breaker, cache.l3_limiter),
            clock=cache.clock,
            seen=held,
        )
    except SourceUnavailable as error:
        report.stopped = f"postgres does not answer: {error.reason}"
        return False
    report.keys_loaded += len(renewed.entries)
    report.keys_elsewhere += renewed.held_elsewhere
    if not renewed.arrived:
        report.stopped = "l2 does not take copies"
        return False
    report.keys_put += len(renewed.entries)
    return True
