"""What the inspector has found, for people: how many writes were everywhere correct after so many seconds.

Said in nines, as the base-10 logarithm: 3 nines are one write in a thousand that some copy missed. Where nothing was
wrong among N writes, that proves no more than a share below 3/N with 95 % confidence, which is what is told then. (The
rule of three: Hanley and Lippman-Hand 1983.)

The platform imports no app, so the tables are named, not imported.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import log10
from typing import Any

import msgspec
from django.apps import apps
from django.db import Error
from django.db.models import F, Max, Sum

from mlserve.console import units
from mlserve.console.attention import Notice

SPAN_DAYS = 7
CAUSES = ("late", "lost_invalidation", "wrong_bytes", "unknown")
_ALL_TIERS = "all"


class HorizonReport(msgspec.Struct, frozen=True, kw_only=True):
    """Writes that were looked at when they were at least `horizon_s` old.

    `nines`: of correctness; a lower bound if `at_least`; None if too few were checked to say anything. `copies`: places
    looked at, by tier.
    """

    horizon_s: int
    checked: int
    causes: Mapping[str, int]
    nines: float | None
    at_least: bool
    mean_age_s: float | None
    copies: Mapping[str, int]

    @property
    def wrong(self) -> int:
        return sum(self.causes.values())

    @property
    def said(self) -> str:
        """`≥ 4.2 nines`."""
        if self.nines is None:
            return units.NOTHING
        return f"{'≥ ' if self.at_least else ''}{self.nines:.1f} nines"

    @property
    def causes_said(self) -> str:
        """`2 late, 1 wrong bytes`; the most frequent first."""
        ordered = sorted(self.causes.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{number:,} {cause.replace('_', ' ')}" for cause, number in ordered)


class SwitchedOff(msgspec.Struct, frozen=True, kw_only=True):
    """A group whose policy has allowed no tier since the inspector found a wrong copy of it. `at`: UTC."""

    group: str
    cause: str
    at: datetime


class SkewFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of the newest comparison of served values with training's: `differing` of them without a reason. `at`: UTC."""

    at: datetime
    decisions: int
    compared: int
    differing: int
    features: tuple[str, ...]

    @property
    def features_said(self) -> str:
        return ", ".join(self.features)


class ConsistencyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last `SPAN_DAYS` days. `error` says why it is empty."""

    horizons: tuple[HorizonReport, ...] = ()
    switched_off: tuple[SwitchedOff, ...] = ()
    skew: SkewFigures | None = None
    error: str = ""


def nines(*, checked: int, wrong: int) -> tuple[float | None, bool]:
    """Nines of correctness, and whether that is the lower bound of 95 % confidence because nothing was wrong."""
    if wrong:
        return max(0.0, -log10(wrong / checked)), False
    return (log10(checked / 3), True) if checked > 3 else (None, True)


def read_consistency(*, now: float) -> ConsistencyReport:
    """Four queries. Never raises for a database that is away or not migrated yet."""
    since = (datetime.fromtimestamp(now, UTC) - timedelta(days=SPAN_DAYS - 1)).date()
    try:
        rows = list(
            apps.get_model("features", "InspectionCount")
            .objects.filter(day__gte=since)
            .values("horizon_s", "tier")
            .annotate(**{name: Sum(F(name)) for name in (*CAUSES, "checked", "age_sum_s")})
        )
        off = tuple(_switched_off())
        skew = _skew(since=datetime.fromtimestamp(now, UTC) - timedelta(days=SPAN_DAYS))
    except Error as error:
        return ConsistencyReport(error=str(error).strip().partition("\n")[0])
    horizons = sorted({row["horizon_s"] for row in rows})
    return ConsistencyReport(
        horizons=tuple(_horizon(horizon_s, rows) for horizon_s in horizons), switched_off=off, skew=skew
    )


def notices_of(report: ConsistencyReport) -> list[Notice]:
    """Of groups that Postgres alone answers for, and of scores that were given on what training has not seen."""
    found = [
        Notice(
            "error",
            f"{off.group} is read from Postgres alone since {off.at:%Y-%m-%d %H:%M} UTC: the inspector found a copy "
            f"of it ({off.cause.replace('_', ' ')}). When the reason is found, allow L1 and L2 again in its TTL policy",
        )
        for off in report.switched_off
    ]
    if report.skew is not None and report.skew.differing:
        found.append(
            Notice(
                "error",
                f"{report.skew.differing:,} served values are not those of training: {report.skew.features_said}. "
                "Examples: manage.py training_serving_skew",
            )
        )
    return found


def _horizon(horizon_s: int, rows: Iterable[Mapping[str, Any]]) -> HorizonReport:
    of_tier: dict[str, Mapping[str, Any]] = {row["tier"]: row for row in rows if row["horizon_s"] == horizon_s}
    writes = of_tier.get(_ALL_TIERS, dict.fromkeys((*CAUSES, "checked", "age_sum_s"), 0))
    causes = {cause: writes[cause] for cause in CAUSES if writes[cause]}
    found, at_least = nines(checked=writes["checked"], wrong=sum(causes.values()))
    return HorizonReport(
        horizon_s=horizon_s,
        checked=writes["checked"],
        causes=causes,
        nines=found,
        at_least=at_least,
        mean_age_s=writes["age_sum_s"] / writes["checked"] if writes["checked"] else None,
        copies={tier: row["checked"] for tier, row in sorted(of_tier.items()) if tier != _ALL_TIERS},
    )


def _skew(*, since: datetime) -> SkewFigures | None:
    newest = apps.get_model("predictions", "SkewCheck").objects.filter(at__gte=since).first()
    if newest is None:
        return None
    return SkewFigures(
        at=newest.at,
        decisions=newest.sampled,
        compared=newest.compared,
        differing=newest.differing,
        features=tuple(name for name, of in newest.report["features"].items() if of["differing"]),
    )


def _switched_off() -> Iterable[SwitchedOff]:
    """Groups that are off now, and that a finding has switched off."""
    off = apps.get_model("features", "TtlPolicy").objects.filter(use_l1=False, use_l2=False)
    findings = apps.get_model("features", "InspectionFinding").objects.filter(
        switched_off=True, group__in=off.values("name")
    )
    newest = findings.values("group").annotate(newest=Max("id")).values("newest")
    for finding in findings.filter(id__in=newest).order_by("group"):
        yield SwitchedOff(group=finding.group, cause=finding.cause, at=finding.at)
