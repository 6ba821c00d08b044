"""What operators see of the inspector: nines, findings, groups that are out of the cache."""

import time
from datetime import UTC, datetime, timedelta
from math import log10

import pytest
from django.db import connection
from django.test import Client

from features.models import InspectionCount, InspectionFinding, TtlPolicy
from mlserve.console.consistency import nines, notices_of, read_consistency
from predictions.models import SkewCheck
from tests.fixtures.servers import ServerHandle

_PAGE = "/admin/cache/"


def _count(horizon_s: int, tier: str, checked: int, *, days_ago: int = 0, **causes: int) -> None:
    InspectionCount.objects.create(
        day=(datetime.now(UTC) - timedelta(days=days_ago)).date(),
        horizon_s=horizon_s,
        tier=tier,
        checked=checked,
        age_sum_s=1.5 * checked,
        **(dict.fromkeys(("late", "lost_invalidation", "wrong_bytes", "unknown"), 0) | causes),
    )


def _find(group: str, *, cause: str = "wrong_bytes", switched_off: bool = True) -> None:
    InspectionFinding.objects.create(
        at=datetime(2026, 11, 20, 8, 30, tzinfo=UTC),
        group=group,
        entity_id="M7",
        tier="l2",
        horizon_s=1,
        age_s=1.2,
        cause=cause,
        held_version=5,
        written_version=6,
        switched_off=switched_off,
    )


def _section(client: Client) -> str:
    response = client.get(_PAGE)
    assert response.status_code == 200
    html = str(response.content.decode()).replace("\N{NARROW NO-BREAK SPACE}", " ")
    return html.partition('aria-label="Consistency"')[2].partition("</section>")[0]


@pytest.mark.parametrize(
    ("checked", "wrong", "expected"),
    [
        (0, 0, (None, True)),
        (3, 0, (None, True)),
        (30_000, 0, (4.0, True)),
        (1_000, 1, (3.0, False)),
        (1_000, 1_000, (0.0, False)),
        (2, 1, (log10(2), False)),
    ],
)
def test_nines(checked: int, wrong: int, expected: tuple[float | None, bool]) -> None:
    """Where nothing was wrong: what so many writes prove, which is less than nothing wrong at all."""
    found, at_least = nines(checked=checked, wrong=wrong)
    assert (found if found is None else pytest.approx(found), at_least) == expected


@pytest.mark.django_db
@pytest.mark.usefixtures("metrics_dir", "series", "redis_client")
def test_before_anything_was_inspected_the_page_says_how(as_operator: Client) -> None:
    """No figures that nobody has measured."""
    html = _section(as_operator)
    assert "manage.py inspect" in html and "beat" in html
    assert "nines</p>" not in html


@pytest.mark.django_db
@pytest.mark.usefixtures("metrics_dir", "series", "redis_client")
def test_each_horizon_has_its_nines(as_operator: Client) -> None:
    """Of the last seven days together, in order; older days do not count."""
    _count(1, "all", 10_000)
    _count(1, "all", 20_000, days_ago=6)
    _count(1, "all", 999, days_ago=7, wrong_bytes=999)
    _count(1, "l2", 29_000)
    _count(1, "l1", 58_000)
    _count(10, "all", 1_000, late=1)
    _count(300, "all", 2)
    html = _section(as_operator)
    assert html.index("After 1 s") < html.index("After 10 s") < html.index("After 5 min")
    assert "≥ 4.0 nines" in html and "30,000 writes checked" in html and "none wrong" in html
    assert "L1 58,000, L2 29,000" in html and "1.5 s old on average" in html
    assert ">3.0 nines" in html and "1 late" in html


@pytest.mark.django_db
@pytest.mark.usefixtures("metrics_dir", "series", "redis_client")
def test_a_group_that_is_out_of_the_cache_is_named_above_everything(as_operator: Client) -> None:
    """With the reason and the way back; no longer when its policy allows a tier again."""
    _find("merchant_risk")
    _find("merchant_profile", switched_off=False)
    assert "Postgres alone" not in as_operator.get(_PAGE).content.decode()
    TtlPolicy.objects.filter(name__in=("merchant_risk", "merchant_profile")).update(use_l1=False, use_l2=False)
    html = as_operator.get(_PAGE).content.decode()
    assert "merchant_risk is read from Postgres alone since 2026-11-20 08:30 UTC" in html
    assert "(wrong bytes)" in html
    assert "merchant_profile is read" not in html
    TtlPolicy.objects.filter(name="merchant_risk").update(use_l2=True)
    assert "Postgres alone" not in as_operator.get(_PAGE).content.decode()


@pytest.mark.django_db
@pytest.mark.usefixtures("metrics_dir")
def test_findings_are_listed(as_operator: Client) -> None:
    """An id is text, whatever it holds; nobody can add or change one."""
    _find("merchant_risk")
    InspectionFinding.objects.update(entity_id="<i>7")
    html = as_operator.get("/admin/features/inspectionfinding/").content.decode()
    assert "&lt;i&gt;7" in html and "wrong_bytes" in html and "2026-11-20 08:30:00 UTC" in html
    assert as_operator.get("/admin/features/inspectionfinding/?q=M7").status_code == 200
    assert as_operator.get("/admin/features/inspectionfinding/add/").status_code == 403


@pytest.mark.django_db(transaction=True)
def test_without_postgres_there_is_an_empty_report(postgres: ServerHandle) -> None:
    """And no exception."""
    postgres.kill()
    report = read_consistency(now=time.time())
    connection.close()
    assert report.error and not report.horizons and not notices_of(report)


@pytest.mark.django_db
@pytest.mark.usefixtures("metrics_dir", "series", "redis_client")
def test_values_that_training_does_not_have_are_named(as_operator: Client) -> None:
    """The newest comparison counts; differences stand above everything as well."""

    def check(differing: int, *, hours_ago: int) -> None:
        features = {"amount": {"differing": 0}, "affinity": {"differing": differing}}
        SkewCheck.objects.create(
            at=datetime.now(UTC) - timedelta(hours=hours_ago),
            sampled=1_000,
            compared=21_000,
            differing=differing,
            report={"features": features},
        )

    assert "Serving and training" not in _section(as_operator)
    check(3, hours_ago=2)
    html = as_operator.get(_PAGE).content.decode()
    assert "3 served values are not those of training: affinity" in html
    assert "3 are not those that training has (affinity)" in html
    check(0, hours_ago=1)
    html = as_operator.get(_PAGE).content.decode()
    assert "of 21,000 values in a sample of 1,000 decisions, all are those that training has" in html
    assert "not those of training" not in html
