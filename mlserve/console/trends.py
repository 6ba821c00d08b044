"""The last hour as charts: each pair of neighbouring snapshots gives one point of every line."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from mlserve.console import charts, units
from mlserve.console.charts import Chart, Line, Point
from mlserve.console.figures import Figures
from mlserve.console.report import DECISIONS, hit_share, source_loads
from mlserve.console.window import Window, between

HOUR_S = 3600.0
_SHORTEST_S = 600.0
"""A service that has just started shows its first minutes over the whole width, not at the edge of an empty hour."""
STEP_S = 25.0
"""Every third snapshot, with some room for their jitter: nobody could tell more apart at the width of a chart."""
_TIMED_TIERS = ("l1", "l2", "l3")


def trend_charts(series: Sequence[Figures], *, until: float) -> tuple[Chart, ...]:
    """Hit share and p99 per tier, scores and origin loads per second, up to `until` (s since 1970).

    They go back an hour, or as far as there are snapshots.
    """
    oldest = series[0].at if series else until
    since = max(until - HOUR_S, min(oldest, until - _SHORTEST_S))
    windows = [(later.at, between(earlier, later)) for earlier, later in pairwise(series)]

    def line(name: str, style: str, value: Callable[[Window], float | None]) -> Line:
        points: list[Point] = [(at, value(window)) for at, window in windows]
        return Line(name=name, style=style, points=points)

    def chart(title: str, note: str, lines: Sequence[Line], scale: charts.ScaleOf, write: charts.Write) -> Chart:
        return charts.time_chart(
            title=title, note=note, lines=lines, since=since, until=until, scale_of=scale, write=write
        )

    return (
        chart(
            "Hit rate per tier",
            "Share of the feature keys asked of a tier that it answered",
            [line(tier.upper(), f"tier-{tier}", _hit_share(tier)) for tier in ("l1", "l2")],
            charts.share_scale,
            units.share,
        ),
        chart(
            "Scores",
            "Scores per second by decision",
            [line(decision, f"decision-{decision}", _scores(decision)) for decision in DECISIONS],
            charts.linear_scale,
            units.rate,
        ),
        chart(
            "Latency, p99",
            "About 99 % of the look-ups of a tier, and of whole scores, were faster",
            [
                *(
                    line(tier.upper(), f"tier-{tier}", _p99("mlserve_cache_tier_seconds", tier))
                    for tier in _TIMED_TIERS
                ),
                line("score", "tier-score", _p99("mlserve_score_seconds")),
            ],
            charts.log_scale,
            units.latency,
        ),
        chart(
            "Origin load",
            "Keys read from Postgres per second because no tier had them",
            [line("keys read", "tier-l3", lambda window: window.per_second(source_loads(window)))],
            charts.linear_scale,
            units.rate,
        ),
    )


def _hit_share(tier: str) -> Callable[[Window], float | None]:
    return lambda window: hit_share(window, tier)


def _scores(decision: str) -> Callable[[Window], float | None]:
    return lambda window: window.per_second(window.total("mlserve_scores_total", decision))


def _p99(metric: str, *labels: str) -> Callable[[Window], float | None]:
    return lambda window: window.buckets(metric, *labels).quantile(0.99)
