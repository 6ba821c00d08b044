"""Everything that the overview and `cachestat` show, fetched at one moment. Servers that are away leave gaps."""

from collections.abc import Sequence

import msgspec
from django_redis import get_redis_connection
from redis.exceptions import RedisError

from mlserve.cache.hotkeys import HotKey, read_hot_keys
from mlserve.console.figures import Figures, broker_client, collect_figures, read_series
from mlserve.console.inforce import read_in_force
from mlserve.console.proven import unproven
from mlserve.console.report import Report, report_on
from mlserve.console.trends import HOUR_S, STEP_S
from mlserve.console.window import look_back, since_start

HOT_KEYS_SHOWN = 20


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """`series` are the snapshots of the last hour, oldest first; `history_error` says why there are none.

    `unproven` says of which groups freshness should be proven and cannot be, and why; empty if of none.
    """

    report: Report
    hot_keys: tuple[HotKey, ...]
    series: Sequence[Figures]
    history_error: str
    unproven: str = ""


def take_survey(*, now: float, look_back_s: float | None) -> Survey:
    """Figures over the last `look_back_s` seconds, or since the start of counting if that is None."""
    figures = collect_figures(now)
    series, history_error = _history(now)
    window = since_start(figures) if look_back_s is None else look_back(series, figures, seconds=look_back_s)
    in_force = read_in_force()
    return Survey(
        report=report_on(window, figures, in_force),
        hot_keys=_hot_keys(now) if figures.l2.reachable else (),
        series=series,
        history_error=history_error,
        unproven=unproven(in_force.proven, now=now) if figures.l2.reachable else "",
    )


def _history(now: float) -> tuple[Sequence[Figures], str]:
    client = broker_client()
    try:
        return read_series(client, since=now - HOUR_S, step_s=STEP_S), ""
    except (RedisError, OSError) as error:
        return (), str(error) or type(error).__name__
    finally:
        client.close()


def _hot_keys(now: float) -> tuple[HotKey, ...]:
    try:
        return tuple(read_hot_keys(get_redis_connection("l2"), limit=HOT_KEYS_SHOWN, now=now))
    except (RedisError, OSError):
        return ()
