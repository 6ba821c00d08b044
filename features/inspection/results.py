"""What is kept of the inspector's looks: counts by day, and the copies that were wrong. Both are pruned."""

from collections.abc import Iterable
from datetime import date, datetime, timedelta

import msgspec
from django.db import connection

from features.inspection.verdicts import Cause
from features.models import InspectionCount, InspectionFinding
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier

ALL_TIERS = "all"
"""In place of a tier: writes. One counts once, and is inconsistent if any copy was."""
COUNTS_KEPT = timedelta(days=90)
FINDINGS_KEPT = timedelta(days=30)
MOST_FINDINGS = 10_000
MOST_FINDINGS_AT_ONCE = 100
"""Of one look. All wrong copies are counted and deleted; these are described."""


class Finding(msgspec.Struct, frozen=True):
    """A wrong copy. `written`: the version of the write that it was checked against, `age_s` ago at least."""

    key: Key
    tier: Tier
    place: str
    horizon_s: int
    age_s: float
    cause: Cause
    held: int
    written: int


class Count(msgspec.Struct):
    """Of one horizon and tier. `age_sum_s`: of the writes, since their transactions began."""

    checked: int = 0
    age_sum_s: float = 0.0
    causes: dict[Cause, int] = {}

    @property
    def inconsistent(self) -> int:
        return sum(self.causes.values())

    def add(self, cause: Cause | None, *, age_s: float) -> None:
        self.checked += 1
        self.age_sum_s += age_s
        if cause is not None:
            self.causes[cause] = self.causes.get(cause, 0) + 1


class Counts(msgspec.Struct):
    """By horizon (s) and tier."""

    of: dict[tuple[int, str], Count] = {}

    def at(self, horizon_s: int, tier: str) -> Count:
        return self.of.setdefault((horizon_s, tier), Count())

    def merge(self, others: "Counts") -> None:
        for place, other in others.of.items():
            mine = self.at(*place)
            mine.checked += other.checked
            mine.age_sum_s += other.age_sum_s
            for cause, number in other.causes.items():
                mine.causes[cause] = mine.causes.get(cause, 0) + number


def keep(counts: Counts, findings: Iterable[Finding], *, switched_off: Iterable[str], now: datetime) -> None:
    """For use within the database transaction that moves the cursors on."""
    rows: list[tuple[date | int | str | float, ...]] = [
        (
            now.date(),
            horizon_s,
            tier,
            count.checked,
            count.age_sum_s,
            *[count.causes.get(cause, 0) for cause in Cause],
        )
        for (horizon_s, tier), count in sorted(counts.of.items())
    ]
    with connection.cursor() as cursor:
        cursor.executemany(_ADD, rows)
    off = set(switched_off)
    InspectionFinding.objects.bulk_create(
        [
            InspectionFinding(
                at=now,
                group=finding.key.group,
                entity_id=finding.key.id,
                tier=str(finding.tier),
                place=finding.place[:200],
                horizon_s=finding.horizon_s,
                age_s=finding.age_s,
                cause=str(finding.cause),
                # A version that somebody made up may be larger than any of Postgres.
                held_version=min(finding.held, 2**63 - 1),
                written_version=finding.written,
                switched_off=finding.key.group in off,
            )
            for finding in list(findings)[:MOST_FINDINGS_AT_ONCE]
        ]
    )


def prune(*, now: datetime) -> None:
    """Raises Django's database errors."""
    InspectionCount.objects.filter(day__lt=(now - COUNTS_KEPT).date()).delete()
    InspectionFinding.objects.filter(at__lt=now - FINDINGS_KEPT).delete()
    newest = InspectionFinding.objects.order_by("-id").values_list("id", flat=True)[MOST_FINDINGS : MOST_FINDINGS + 1]
    for beyond in newest:
        InspectionFinding.objects.filter(id__lte=beyond).delete()


_CAUSES = [str(cause) for cause in Cause]
_ADD = f"""
INSERT INTO features_inspectioncount AS kept (day, horizon_s, tier, checked, age_sum_s, {", ".join(_CAUSES)})
VALUES (%s, %s, %s, %s, %s, {", ".join(["%s"] * len(_CAUSES))})
ON CONFLICT (day, horizon_s, tier)
DO UPDATE SET checked = kept.checked + excluded.checked, age_sum_s = kept.age_sum_s + excluded.age_sum_s,
              {", ".join(f"{cause} = kept.{cause} + excluded.{cause}" for cause in _CAUSES)}
"""
