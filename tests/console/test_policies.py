"""TTL policies, edited by operators."""

import time
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from redis import Redis

from features.models import PolicyRevision, TtlPolicy
from tests.console.watermarks import put_watermark
from tests.fixtures.servers import ServerHandle

pytestmark = pytest.mark.django_db

_GOOD = {
    "fresh_for_s": "1800",
    "grace_s": "7200.5",
    "negative_ttl_s": "30",
    "use_l1": "on",
    "use_l2": "on",
    "freshness": "ttl",
    "on_missing": "default",
}


def _edit(client: Client, name: str, **changes: str) -> Any:
    return client.post(f"/admin/features/ttlpolicy/{name}/change/", {**_GOOD, **changes}, follow=True)


def test_an_edit_is_stored_and_says_from_when_on(as_operator: Client) -> None:
    """Every process obeys within a second."""
    html = _edit(as_operator, "merchant_risk").content.decode()
    assert "in force in every process within a second" in html
    policy = TtlPolicy.objects.get(name="merchant_risk")
    assert (policy.fresh_for_s, policy.grace_s, policy.use_l1) == (1800, 7200.5, True)


def test_an_edit_names_who_changed_what(as_operator: Client) -> None:
    """Once as a revision, which scores refer to, and once in the admin's log."""
    last = PolicyRevision.objects.first()
    assert last is not None
    _edit(as_operator, "merchant_risk")
    revision = PolicyRevision.objects.first()
    assert revision is not None
    assert revision.pk > last.pk
    assert revision.before is not None
    assert (revision.before["fresh_for_s"], revision.after["fresh_for_s"]) == (3600.0, 1800.0)
    assert LogEntry.objects.get().user.username == "olga"
    for page in ("/admin/features/policyrevision/", "/admin/features/ttlpolicy/merchant_risk/change/"):
        html = as_operator.get(page).content.decode()
        assert "fresh_for_s 3600 \N{RIGHTWARDS ARROW} 1800" in html
        assert "<td>olga</td>" in html or '<td class="field-by">olga</td>' in html
    detail = as_operator.get(f"/admin/features/policyrevision/{revision.pk}/change/").content.decode()
    assert "olga" in detail


def test_an_edit_by_other_ways_is_not_laid_on_somebody(as_operator: Client) -> None:
    """An edit of another policy in the same second is not that person's."""
    _edit(as_operator, "merchant_risk")
    TtlPolicy.objects.filter(name="merchant_profile").update(grace_s=1)
    html = as_operator.get("/admin/features/policyrevision/?policy=merchant_profile").content.decode()
    assert "grace_s 86400 " in html
    assert "olga</td>" not in html


@pytest.mark.parametrize("field", ["fresh_for_s", "grace_s", "negative_ttl_s"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "1e400", "31536001", "1 h", "", "0x10"])
def test_what_is_not_a_duration_is_refused(field: str, value: str, as_operator: Client) -> None:
    """The form says which field; nothing is stored."""
    response = _edit(as_operator, "merchant_risk", **{field: value})
    assert response.status_code == 200
    assert response.context["adminform"].form.errors.keys() == {field}
    assert TtlPolicy.objects.get(name="merchant_risk").fresh_for_s == 3600


@pytest.mark.parametrize("value", ["0", "0.5", "31536000"])
def test_the_ends_of_the_range_are_allowed(value: str, as_operator: Client) -> None:
    """Zero reads the source every time; a year is the most."""
    _edit(as_operator, "merchant_risk", fresh_for_s=value)
    assert TtlPolicy.objects.get(name="merchant_risk").fresh_for_s == float(value)


def test_a_choice_that_does_not_exist_is_refused(as_operator: Client) -> None:
    """`on_missing` is one of two."""
    response = _edit(as_operator, "merchant_risk", on_missing="explode")
    assert response.context["adminform"].form.errors.keys() == {"on_missing"}


def test_a_streaming_group_in_l1_is_warned_of(as_operator: Client) -> None:
    """It is allowed, and the reason against it is told; a batch group is not warned of."""
    assert "other processes do not hear" in _edit(as_operator, "customer_activity").content.decode()
    assert "other processes do not hear" not in _edit(as_operator, "merchant_risk").content.decode()


def test_proof_without_a_relay_is_warned_of(as_operator: Client, redis_client: Redis) -> None:
    """On the list and on the page of the policy that asks for it; not on others, and not while a relay works."""
    pages = [f"/admin/features/ttlpolicy/{name}" for name in ("", "merchant_risk/change/", "merchant_profile/change/")]

    def warned() -> list[bool]:
        return ["Freshness of merchant_risk cannot be proven" in as_operator.get(page).text for page in pages]

    assert warned() == [False, False, False]
    for grace_s in ("10", "20"):
        html = _edit(as_operator, "merchant_risk", freshness="proven", grace_s=grace_s).text
        assert html.count("Freshness of merchant_risk cannot be proven") == 1
    assert warned() == [True, True, False]
    put_watermark(redis_client, age_s=0.0)
    assert warned() == [False, False, False]
    put_watermark(redis_client, age_s=30.0)
    assert warned() == [True, True, False]


def test_a_cache_that_is_away_is_named_as_the_reason(as_operator: Client, valkey_cache: ServerHandle) -> None:
    """The page comes, and within a second."""
    TtlPolicy.objects.filter(name="merchant_risk").update(freshness="proven")
    valkey_cache.freeze()
    began = time.monotonic()
    html = as_operator.get("/admin/features/ttlpolicy/").text
    assert time.monotonic() - began < 3.0
    assert "cannot be proven" in html and "L2 does not answer" in html


def test_a_policy_that_is_not_there_is_no_error(as_operator: Client) -> None:
    """Django sends the browser to the first page."""
    assert as_operator.get("/admin/features/ttlpolicy/other/change/").status_code == 302


def test_the_name_of_a_policy_cannot_be_changed(as_operator: Client) -> None:
    """A posted name is ignored."""
    _edit(as_operator, "merchant_risk", group="other", updated="never")
    assert not TtlPolicy.objects.filter(name="other").exists()
    assert TtlPolicy.objects.get(name="merchant_risk").fresh_for_s == 1800


def test_the_list_speaks_in_durations(as_operator: Client) -> None:
    """With entity and cadence beside."""
    html = as_operator.get("/admin/features/ttlpolicy/").content.decode()
    for part in (
        "1\N{NARROW NO-BREAK SPACE}min",
        "6\N{NARROW NO-BREAK SPACE}h",
        "streaming",
        "merchant",
        "default, flagged",
    ):
        assert part in html


def test_two_editors_in_a_row_are_told_apart(as_operator: Client, as_superuser: Client) -> None:
    """Each revision is its own editor's, however soon the next one follows."""
    _edit(as_operator, "merchant_risk", fresh_for_s="100")
    _edit(as_superuser, "merchant_risk", fresh_for_s="200")
    rows = as_operator.get("/admin/features/policyrevision/").context["cl"].result_list
    assert [row.editor for row in rows[:2]] == ["root", "olga"]
