"""Who may open which page of the admin, and that no page breaks its own Content-Security-Policy."""

import re

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.test import Client, override_settings
from django.utils import timezone

from features.models import Transaction
from mlserve.console.operators import GROUP_NAME
from predictions.models import Activation
from tests.console.records import make_decision, make_model

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("metrics_dir")]

_FOR_OPERATORS = (
    "/admin/cache/",
    "/admin/features/ttlpolicy/",
    "/admin/features/ttlpolicy/merchant_risk/change/",
    "/admin/features/policyrevision/",
    "/admin/features/inspectionfinding/",
    "/admin/features/transaction/",
    "/admin/features/transaction/T1/change/",
    "/admin/features/labelreport/",
    "/admin/features/featuregrouprecord/",
    "/admin/features/featurerecord/",
    "/admin/features/featurerecord/affinity/change/",
    "/admin/predictions/modelversion/",
    "/admin/predictions/modelversion/{model}/change/",
    "/admin/predictions/activation/",
    "/admin/predictions/decision/",
    "/admin/predictions/decision/T1/change/",
    "/admin/django_celery_beat/periodictask/",
)
_FOR_SUPERUSERS = ("/admin/auth/user/", "/admin/auth/group/", "/admin/api/apikey/")
_FOR_NOBODY = (
    "/admin/features/ttlpolicy/add/",
    "/admin/features/ttlpolicy/merchant_risk/delete/",
    "/admin/features/transaction/add/",
    "/admin/features/labelreport/add/",
    "/admin/features/transaction/T1/delete/",
    "/admin/predictions/modelversion/add/",
    "/admin/predictions/modelversion/{model}/delete/",
    "/admin/predictions/decision/T1/delete/",
    "/admin/predictions/activation/add/",
    "/admin/features/featurerecord/add/",
)


@pytest.fixture(autouse=True)
def model() -> int:
    """Something on every page."""
    version = make_model(1)
    Activation.objects.create(model_version=version)
    make_decision(version)
    Transaction.objects.create(
        id="T1", occurred_at=timezone.now(), customer_id="C1", merchant_id="M1", amount="9.99", is_fraud=None
    )
    return version.pk


@pytest.mark.parametrize("page", ["/admin/", *_FOR_OPERATORS, *_FOR_SUPERUSERS])
def test_strangers_are_sent_to_the_login(page: str, client: Client, model: int) -> None:
    """Nothing is shown, nothing is told apart."""
    page = page.format(model=model)
    response = client.get(page)
    assert (response.status_code, response.headers["Location"]) == (302, f"/admin/login/?next={page}")


def test_operators_stay_logged_in_while_the_secret_key_is_replaced(as_operator: Client) -> None:
    """By processes that have the new key and by those that do not yet; without fallback they have to log in anew."""
    old, new = settings.SECRET_KEY, "another-key-" * 5
    for key, other in ((old, new), (new, old), (old, new), (new, old)):
        with override_settings(SECRET_KEY=key, SECRET_KEY_FALLBACKS=[other]):
            assert as_operator.get("/admin/cache/").status_code == 200
    with override_settings(SECRET_KEY=new):
        assert as_operator.get("/admin/cache/").status_code == 200
    with override_settings(SECRET_KEY=old):
        assert as_operator.get("/admin/cache/").status_code == 302


@pytest.mark.parametrize(
    "page",
    [
        "/admin/predictions/decision/%00/change/",
        "/admin/predictions/decision/a%00b/history/",
        "/admin/features/transaction/%00/change/",
        "/admin/features/ttlpolicy/%00/change/",
        "/admin/features/featurerecord/%00/change/",
        "/admin/predictions/decision/?decision=%00",
        "/admin/predictions/decision/?decision=a&decision=%00",
        "/admin/predictions/modelversion/?estimator=%00",
        "/admin/auth/user/?username=%00",
        "/admin/predictions/decision/?%00=1",
        "/admin/r/1/%00/",
        "/admin/nothing%00/",
    ],
)
def test_nothing_lies_at_an_address_with_a_nul(page: str, as_superuser: Client) -> None:
    """PostgreSQL, which refuses the character with an error, is not asked."""
    assert as_superuser.get(page).status_code == 404


@pytest.mark.parametrize("page", ["/admin/predictions/decision/", "/admin/features/transaction/", "/admin/auth/user/"])
def test_a_search_for_a_nul_is_answered_in_words(page: str, as_superuser: Client) -> None:
    """Not with an error page."""
    response = as_superuser.get(f"{page}?q=%00")
    assert response.status_code == 200
    assert "Null characters are not allowed" in response.content.decode()


def test_a_form_with_a_nul_is_refused(as_superuser: Client, model: int) -> None:
    """No browser sends one; neither a chosen row nor a free text reaches PostgreSQL."""
    page, action = "/admin/predictions/modelversion/", {"action": "activate_version", "confirmed": "yes"}
    for fields in ({"_selected_action": "\0"}, {"_selected_action": str(model), "reason": "a\0b"}):
        assert as_superuser.post(page, {**action, **fields}).status_code == 400
    assert Activation.objects.count() == 1


def test_a_nul_tells_strangers_nothing(client: Client) -> None:
    """They are sent to the login as from everywhere."""
    assert client.get("/admin/predictions/decision/%00/change/").status_code == 302


@pytest.mark.parametrize("wanted", ["", "https://elsewhere.example/", "//elsewhere.example", "javascript:alert(1)"])
def test_a_log_in_that_names_no_page_of_ours_leads_to_the_first(wanted: str, superuser: User, client: Client) -> None:
    """Not to an address that does not exist."""
    form = {"username": "root", "password": "a-long-password", "next": wanted}
    response = client.post("/admin/login/", form, follow=True)
    assert response.redirect_chain == [("/admin/", 302)]
    assert response.status_code == 200


@pytest.mark.parametrize("page", ["/admin/", *_FOR_OPERATORS])
def test_users_who_are_not_staff_are_sent_to_the_login(page: str, client: Client, model: int) -> None:
    """A permission alone does not open the admin."""
    user = User.objects.create_user("carl")
    user.user_permissions.add(*Permission.objects.all())
    client.force_login(user)
    assert client.get(page.format(model=model)).status_code == 302


@pytest.mark.parametrize("page", [*_FOR_OPERATORS, *_FOR_SUPERUSERS])
def test_staff_without_permission_are_refused(page: str, client: Client, model: int) -> None:
    """Being staff opens the first page and no other."""
    client.force_login(User.objects.create_user("stan", is_staff=True))
    assert client.get(page.format(model=model)).status_code == 403
    assert b"admin/cache/" not in client.get("/admin/").content


@pytest.mark.parametrize("page", ["/admin/", *_FOR_OPERATORS])
def test_operators_see_what_they_need(page: str, as_operator: Client, model: int) -> None:
    """By the group alone, which every migrate keeps."""
    assert as_operator.get(page.format(model=model)).status_code == 200


@pytest.mark.parametrize("page", _FOR_SUPERUSERS)
def test_operators_do_not_manage_people_and_keys(page: str, as_operator: Client) -> None:
    """That is a superuser's matter."""
    assert as_operator.get(page).status_code == 403


@pytest.mark.parametrize("page", ["/admin/", *_FOR_OPERATORS, *_FOR_SUPERUSERS])
def test_superusers_see_everything(page: str, as_superuser: Client, model: int) -> None:
    """Every page answers."""
    assert as_superuser.get(page.format(model=model)).status_code == 200


@pytest.mark.parametrize("page", _FOR_NOBODY)
def test_records_are_neither_added_nor_deleted_here(page: str, as_superuser: Client, model: int) -> None:
    """Not even by superusers."""
    assert as_superuser.get(page.format(model=model)).status_code == 403


@pytest.mark.parametrize("page", ["/admin/", *_FOR_OPERATORS])
def test_pages_need_no_inline_script_or_style(page: str, as_superuser: Client, model: int) -> None:
    """The policy forbids both, and the markup holds neither."""
    response = as_superuser.get(page.format(model=model))
    policy = response.headers["Content-Security-Policy"]
    assert "'unsafe-inline'" not in policy
    assert "'unsafe-eval'" not in policy
    assert "default-src 'none'" in policy
    html = response.content.decode()
    assert not re.findall(r"<[^>]+\s(?:style|on\w+)\s*=", html)
    assert not [tag for tag in re.findall(r"<script[^>]*>", html) if "src=" not in tag and "json" not in tag]
    assert "<style" not in html


def test_the_overview_is_the_first_thing_on_the_first_page(as_operator: Client) -> None:
    """With its summary in one line."""
    html = as_operator.get("/admin/").content.decode()
    assert html.index("/admin/cache/") < html.index("/admin/features/")
    assert "No traffic yet" in html


def test_the_group_is_made_once_and_keeps_what_was_added(as_operator: Client) -> None:
    """Another migrate neither doubles it nor takes anything away."""
    group = Group.objects.get(name=GROUP_NAME)
    extra = Permission.objects.get(codename="add_user")
    group.permissions.add(extra)
    before = set(group.permissions.values_list("codename", flat=True))
    call_command("migrate", verbosity=0)
    assert set(Group.objects.get(name=GROUP_NAME).permissions.values_list("codename", flat=True)) == before
    assert {"view_cacheoverview", "change_ttlpolicy", "add_activation"} <= before
    assert not {name for name in before if name.startswith("delete_")}
