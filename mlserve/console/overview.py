"""The page `/admin/cache/`: the state of the cache over all processes of this host."""

from dataclasses import dataclass

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString

from mlserve.cache.pays import LEAST_SAMPLES
from mlserve.console import units
from mlserve.console.attention import notices
from mlserve.console.charts import age_chart, share_bar
from mlserve.console.consistency import SPAN_DAYS, ConsistencyReport, notices_of, read_consistency
from mlserve.console.report import AgeReport, NamespaceReport, Report, TierReport
from mlserve.console.survey import Survey, take_survey
from mlserve.console.trends import HOUR_S, trend_charts

PERMISSION = "console.view_cacheoverview"
REFRESH_S = 10
_WINDOWS: dict[str, tuple[str, float | None]] = {
    "60": ("1 min", 60.0),
    "300": ("5 min", 300.0),
    "3600": ("1 h", HOUR_S),
    "all": ("since start", None),
}
_DEFAULT_WINDOW = "300"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A link that changes one thing about the page."""

    label: str
    query: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgePanel:
    report: AgeReport
    chart: SafeString


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRow:
    report: TierReport
    bar: SafeString | None
    has_hit_rate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """`age` is None for predictions, which have none."""

    counts: NamespaceReport
    age: AgeReport | None


def cache_overview(request: HttpRequest, *, site: AdminSite, now: float) -> TemplateResponse:
    """`?window=60|300|3600|all`, `?refresh=10`; other values mean the defaults. 403 without the permission."""
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    window = request.GET.get("window", _DEFAULT_WINDOW)
    if window not in _WINDOWS:
        window = _DEFAULT_WINDOW
    refreshing = request.GET.get("refresh") == str(REFRESH_S)
    survey = take_survey(now=now, look_back_s=_WINDOWS[window][1])
    context = {
        **site.each_context(request),
        "title": "Cache overview",
        "refresh_s": REFRESH_S if refreshing else None,
        "windows": [
            Choice(label=label, query=_query(name, refreshing), chosen=name == window)
            for name, (label, _seconds) in _WINDOWS.items()
        ],
        "toggle": Choice(label=f"every {REFRESH_S} s", query=_query(window, not refreshing), chosen=refreshing),
        "may_see_policies": request.user.has_perm("features.view_ttlpolicy"),
        "may_see_findings": request.user.has_perm("features.view_inspectionfinding"),
        **_content(survey, read_consistency(now=now)),
    }
    return TemplateResponse(request, "console/overview.html", context)


def summary_line(now: float) -> str:
    """The state of the cache in one line, for the admin's first page."""
    report = take_survey(now=now, look_back_s=_WINDOWS[_DEFAULT_WINDOW][1]).report
    l2 = "L2 reachable" if report.l2.reachable else "L2 not reachable"
    if not report.has_traffic:
        return f"No traffic yet · {l2}"
    open_breakers = sum(breaker.openness > 0 for breaker in report.breakers)
    return " · ".join(
        (
            f"{units.rate(report.scores.per_s)} scores" if report.scores.per_s else f"{report.scores.count:,} scores",
            f"{units.share(report.source.saved_share)} of keys answered without Postgres",
            f"p99 {units.latency(report.scores.p99_s)}",
            f"{units.share(report.scores.degraded_share)} degraded",
            f"breakers not closed: {open_breakers}" if open_breakers else "breakers closed",
            l2,
        )
    )


def _content(survey: Survey, consistency: ConsistencyReport) -> dict[str, object]:
    report = survey.report
    return {
        "report": report,
        "notices": [
            *notices_of(consistency),
            *notices(report, history_error=survey.history_error, unproven=survey.unproven),
        ],
        "consistency": consistency,
        "consistency_days": SPAN_DAYS,
        "charts": trend_charts(survey.series, until=report.at),
        "snapshots": len(survey.series),
        "hot_keys": survey.hot_keys,
        "ages": [_age_panel(age) for age in report.ages if age.count],
        "group_rows": _group_rows(report),
        "has_predictions": any(tier.look_up_s or tier.computed_s for tier in report.prediction_cache),
        "least_samples": LEAST_SAMPLES,
        "tier_rows": [
            TierRow(
                report=tier,
                bar=_answer_bar(tier),
                has_hit_rate=tier.tier in ("l1", "l2"),
            )
            for tier in report.tiers
        ],
        "miss_rows": _miss_rows(report),
        "l2_bar": _l2_bar(report),
    }


def _answer_bar(tier: TierReport) -> SafeString | None:
    if tier.answered_share is None:
        return None
    return share_bar(title=f"Share answered by {tier.tier}", share=tier.answered_share)


def _age_panel(age: AgeReport) -> AgePanel:
    return AgePanel(
        report=age, chart=age_chart(group=age.group, ranges=list(age.buckets.ranges()), limit_s=age.limit_s)
    )


def _group_rows(report: Report) -> list[GroupRow]:
    ages = {age.group: age for age in report.ages}
    return [GroupRow(counts=counts, age=ages.get(counts.namespace)) for counts in report.namespaces]


def _miss_rows(report: Report) -> list[tuple[str, int, int, int]]:
    """Reason, misses of L1, misses of L2, both; the most frequent first."""
    by_tier = {tier.tier: tier.misses for tier in report.tiers}
    l1, l2 = by_tier["l1"], by_tier["l2"]
    rows = [(reason, l1.get(reason, 0), l2.get(reason, 0)) for reason in {*l1, *l2}]
    return sorted(((*row, row[1] + row[2]) for row in rows), key=lambda row: (-row[3], row[0]))


def _l2_bar(report: Report) -> SafeString | None:
    if not report.l2.max_bytes:
        return None
    return share_bar(title="L2 memory used", share=report.l2.used_bytes / report.l2.max_bytes)


def _query(window: str, refreshing: bool) -> str:
    return f"?window={window}" + (f"&refresh={REFRESH_S}" if refreshing else "")
