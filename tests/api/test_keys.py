"""Making and revoking keys: by function, by command and in the admin."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import Client

from mlserve.api.keys import KeyRefused, digest_of, issue_key, revoke_key
from mlserve.api.lookup import directory
from mlserve.api.models import ApiKey

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
CHOSEN = "chosen-by-somebody"

pytestmark = pytest.mark.django_db


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        call_command("api_key", *arguments)
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_only_the_digest_of_a_key_is_stored() -> None:
    """And its first twelve characters, of which four are the same in all keys."""
    issued = issue_key(name="a client", scopes=["score"])
    assert issued.created
    assert issued.key.startswith("mls_") and len(issued.key) == 47
    row = ApiKey.objects.values().get()
    assert row["digest"] == digest_of(issued.key.encode())
    assert row["prefix"] == issued.key[:12]
    assert issued.key not in str(row)


def test_a_chosen_key_is_not_shown_by_its_prefix() -> None:
    """Its first characters would be most of it."""
    issued = issue_key(name="demo", scopes=["score"], key=CHOSEN)
    assert issued.key == CHOSEN
    assert CHOSEN[:4] not in issued.record.prefix


def test_the_same_chosen_key_again_changes_nothing() -> None:
    """So that a demo can set it at every start; in whatever order the scopes stand."""
    first = issue_key(name="demo", scopes=["score", "debug"], key=CHOSEN)
    again = issue_key(name="demo", scopes=["debug", "score"], key=CHOSEN)
    assert (again.created, again.record) == (False, first.record)


def test_a_chosen_key_keeps_its_scopes_and_its_end() -> None:
    """Setting it again neither widens nor revives it."""
    record = issue_key(name="demo", scopes=["score"], key=CHOSEN).record
    with pytest.raises(KeyRefused, match="exists with the scopes score"):
        issue_key(name="demo", scopes=["score", "operate"], key=CHOSEN)
    assert revoke_key(record, now=NOW)
    assert not revoke_key(record, now=NOW)
    with pytest.raises(KeyRefused, match="was revoked at 2026-11-23 12:00:00 UTC"):
        issue_key(name="demo", scopes=["score"], key=CHOSEN)


@pytest.mark.parametrize(
    ("name", "scopes", "key", "wrong"),
    [
        (" ", ["score"], None, ["name"]),
        ("x" * 101, ["score"], None, ["name"]),
        ("x", [], None, ["scopes"]),
        ("x", ["score", "admin"], None, ["scopes"]),
        ("x", ["score"], "short", ["key"]),
        ("x", ["score"], "with a space in it", ["key"]),
        ("x", ["score"], "x" * 129, ["key"]),
        ("", ["nothing"], "", ["name", "scopes", "key"]),
    ],
)
def test_what_is_wrong_with_a_wish_is_said_at_once(
    name: str, scopes: list[str], key: str | None, wrong: list[str]
) -> None:
    """Every wrong field, and nothing is stored."""
    with pytest.raises(KeyRefused) as caught:
        issue_key(name=name, scopes=scopes, key=key)
    assert [error.parameter for error in caught.value.errors] == wrong
    assert not ApiKey.objects.exists()


def test_a_revoked_key_is_refused_over_http(client_with: Callable[..., Client]) -> None:
    """At the latest when the second is over for which its last look-up counts."""
    client = client_with("score")
    assert client.get("/v1/models").status_code == 200
    revoke_key(ApiKey.objects.get(), now=NOW)
    directory.forget()
    assert client.get("/v1/models").status_code == 401


def test_the_command_makes_lists_and_revokes(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` gives one document; the list never holds a key."""
    code, out, _ = run(capsys, "create", "--name", "shop", "--scopes", "score, debug", "--json")
    made = json.loads(out)
    assert code == 0 and made["created"] and made["scopes"] == ["score", "debug"]

    _, listed, _ = run(capsys, "list", "--json")
    (shown,) = json.loads(listed)["keys"]
    assert shown["prefix"] == made["prefix"] and shown["revoked_at"] is None
    assert made["key"] not in listed

    code, out, _ = run(capsys, "revoke", made["prefix"], "--json")
    assert code == 0 and json.loads(out)["revoked"] is True
    assert ApiKey.objects.get().revoked_at is not None
    assert "shop" in run(capsys, "list")[1]


def test_the_list_keeps_its_columns_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Also for a key with all scopes and a long limit; without any key it says how to make one."""
    assert "api_key create" in run(capsys, "list")[1]
    scopes = list(ApiKey.Scope.values)
    issue_key(name="shop", scopes=scopes, rate_per_s=1_000_000, burst=1_000_000)
    head, row = run(capsys, "list")[1].splitlines()
    assert row[head.index("scopes") : head.index("limit")].rstrip() == ",".join(scopes)
    assert row[head.index("limit") : head.index("created")].rstrip() == "1000000/s, 1000000 at once"
    assert row[head.index("name") :] == "shop"


def test_the_command_says_that_migrations_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """In words, not with a traceback."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE api_apikey RENAME TO elsewhere")
    code, _, err = run(capsys, "list")
    assert code == 1 and "manage.py migrate" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "--name", "x", "--scopes", "all"], 2, "allowed: score, label, debug, operate"),
        (["create", "--name", "x", "--key", "short"], 2, "needs 16 to 128"),
        (["revoke", "mls_nobody"], 1, "no key has the prefix"),
        (["limit", "mls_nobody", "--rate", "1"], 1, "no key has the prefix"),
        (["limit", "mls_nobody"], 2, "limit needs --rate, --burst or both; or --default alone"),
        (["create", "--name", "x", "--rate", "-1"], 2, "--rate: -1: allowed are 0 to 1,000,000"),
        (["create", "--name", "x", "--burst", "0"], 2, "--burst: 0: allowed are 1 to 1,000,000"),
    ],
)
def test_the_command_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    """With exit code 2 for wrong usage and 1 for what cannot be done."""
    got, out, err = run(capsys, *arguments)
    assert got == code and words in err and out == ""


def test_the_admin_shows_a_new_key_once(admin_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """In the message after saving, and neither on the page nor in a log afterwards."""
    with caplog.at_level(logging.DEBUG):
        saved = admin_client.post("/admin/api/apikey/add/", {"name": "shop", "scopes": ["score"]}, follow=True)
    record = ApiKey.objects.get()
    page = saved.content.decode()
    key = page[page.index("<code>") + len("<code>") : page.index("</code>")]
    assert digest_of(key.encode()) == record.digest
    again = admin_client.get("/admin/api/apikey/").content.decode()
    assert record.prefix in again and key not in again
    assert key not in caplog.text


def test_the_admin_revokes_and_never_deletes_or_widens(admin_client: Client) -> None:
    """A key that was given out keeps its name and scopes, and stays on record."""
    record = issue_key(name="shop", scopes=["score"]).record
    admin_client.post("/admin/api/apikey/", {"action": "revoke", "_selected_action": [record.pk]})
    record.refresh_from_db()
    assert record.revoked_at is not None
    assert admin_client.post(f"/admin/api/apikey/{record.pk}/delete/", {"post": "yes"}).status_code == 403
    changed = {"name": "x", "scopes": ["score", "operate"], "rate_per_s": "5"}
    assert admin_client.post(f"/admin/api/apikey/{record.pk}/change/", changed).status_code == 302
    record.refresh_from_db()
    assert (record.name, record.scopes, record.rate_per_s) == ("shop", ["score"], 5)


def test_the_admin_limits_a_key(admin_client: Client) -> None:
    """When it is made and afterwards; wrong numbers are refused on the form, and the list shows what is in force."""
    made = {"name": "shop", "scopes": ["score"], "rate_per_s": "20", "burst": "50"}
    admin_client.post("/admin/api/apikey/add/", made)
    record = ApiKey.objects.get()
    assert (record.rate_per_s, record.burst) == (20, 50)
    address = f"/admin/api/apikey/{record.pk}/change/"
    for wrong in ({"rate_per_s": "-1"}, {"burst": "0"}, {"rate_per_s": "1000001"}):
        assert admin_client.post(address, wrong).status_code == 200
    admin_client.post(address, {"rate_per_s": "", "burst": ""})
    record.refresh_from_db()
    assert (record.rate_per_s, record.burst) == (None, None)
    assert "none by default" in admin_client.get("/admin/api/apikey/").content.decode()


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        ({"name": " "}, "name", "Say who uses the key."),
        ({"name": "n" * 101}, "name", "at most 100 characters"),
        ({"scopes": []}, "scopes", "Choose at least one"),
        ({"scopes": ["everything"]}, "scopes", "everything is not one of the available choices"),
        ({"rate_per_s": "nan"}, "rate_per_s", "A whole number from 0 to 1,000,000"),
        ({"rate_per_s": "1" + 30 * "0"}, "rate_per_s", "less than or equal to 1000000"),
        ({"burst": "1.5"}, "burst", "A whole number from 1 to 1,000,000"),
    ],
)
def test_the_form_says_what_is_wrong_with_a_key(
    admin_client: Client, wrong: dict[str, object], field: str, words: str
) -> None:
    """At the field, with what is allowed; no key is made."""
    response = admin_client.post("/admin/api/apikey/add/", {"name": "shop", "scopes": ["score"], **wrong})
    errors = response.context["adminform"].form.errors
    assert list(errors) == [field] and words in errors[field][0]
    assert not ApiKey.objects.exists()


def test_a_name_is_text_and_no_markup(admin_client: Client) -> None:
    """In the message with the key, which has markup of its own, too."""
    posted = {"name": "<b>shop</b>", "scopes": ["score"]}
    assert b"<b>shop" not in admin_client.post("/admin/api/apikey/add/", posted, follow=True).content


def test_the_admin_filters_keys_by_their_state(admin_client: Client) -> None:
    """Valid or revoked; anything else filters nothing."""
    issue_key(name="valid-one", scopes=["score"])
    revoke_key(issue_key(name="gone-one", scopes=["score"]).record, now=NOW)
    for state, shown in (("valid", {"valid-one"}), ("revoked", {"gone-one"}), ("x", {"valid-one", "gone-one"})):
        found = admin_client.get(f"/admin/api/apikey/?state={state}").context["cl"].result_list
        assert {record.name for record in found} == shown


def test_a_changed_limit_says_what_is_in_force(admin_client: Client) -> None:
    """And from when on."""
    record = issue_key(name="shop", scopes=["score"]).record
    page = admin_client.post(f"/admin/api/apikey/{record.pk}/change/", {"rate_per_s": "7"}, follow=True)
    assert "is 7/s, 7 at once; every process obeys within a second." in page.content.decode()


def test_staff_who_may_only_look_cannot_limit_a_key(client: Client) -> None:
    """Nor revoke it."""
    record = issue_key(name="shop", scopes=["score"]).record
    staff = User.objects.create_user("staff", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_apikey"))
    client.force_login(staff)
    assert client.get(f"/admin/api/apikey/{record.pk}/change/").status_code == 200
    assert client.post(f"/admin/api/apikey/{record.pk}/change/", {"rate_per_s": "1"}).status_code == 403
    client.post("/admin/api/apikey/", {"action": "revoke", "_selected_action": [record.pk]})
    record.refresh_from_db()
    assert (record.rate_per_s, record.revoked_at) == (None, None)


def test_the_command_limits_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    """When it is made and afterwards; a number that is left out, and both with `--default`, are the settings' again."""
    _, out, _ = run(capsys, "create", "--name", "shop", "--rate", "5", "--burst", "9", "--json")
    made = json.loads(out)
    assert (made["rate_per_s"], made["burst"]) == (5, 9)
    assert "5/s, 9 at once" in run(capsys, "list")[1]
    code, out, _ = run(capsys, "limit", made["prefix"], "--rate", "7")
    assert code == 0 and "7/s, 7 at once" in out
    code, out, _ = run(capsys, "limit", made["prefix"], "--default", "--json")
    assert code == 0 and (json.loads(out)["rate_per_s"], json.loads(out)["burst"]) == (None, None)


@pytest.mark.parametrize(
    "numbers", [[], ["--default", "--rate", "5"], ["--default", "--burst", "5"], ["--default", "--rate", "0"]]
)
def test_a_limit_goes_only_if_somebody_says_so(capsys: pytest.CaptureFixture[str], numbers: list[str]) -> None:
    """Neither numbers nor `--default`, or both: wrong usage, and the key keeps its limit."""
    record = issue_key(name="shop", scopes=["score"], rate_per_s=7, burst=9).record
    code, out, err = run(capsys, "limit", record.prefix, *numbers)
    assert (code, out) == (2, "")
    assert all(option in err for option in ("--rate", "--burst", "--default"))
    record.refresh_from_db()
    assert (record.rate_per_s, record.burst) == (7, 9)


def test_staff_without_permission_see_no_keys(client: Client) -> None:
    """Being staff is not enough."""
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert client.get("/admin/api/apikey/").status_code == 403
    assert client.post("/admin/api/apikey/add/", {"name": "x", "scopes": ["score"]}).status_code == 403
    assert not ApiKey.objects.exists()
