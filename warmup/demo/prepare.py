"""From an empty database to one that can score: each step does only what is missing."""

import io
import json
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db.models import Min

from features.definitions import BUILT_GROUPS, GROUPS
from features.models import FeatureRow, Transaction, TtlPolicy
from features.policies import policies_in_force
from mlserve.api.keys import KeyRefused, issue_key, widen_scopes
from mlserve.api.models import ApiKey
from predictions.models import Activation
from warmup.demo.place import DemoPlace, DemoRefused

KEY_NAME = "demo"
KEY_SCOPES = tuple(ApiKey.Scope)
ADMIN_NAME = "admin"
LOADING = "loading"
PROVEN_GROUPS = ("customer_activity", "merchant_risk")
"""One that changes with every score and one that changes with every build; the others show what a TTL does."""
_FRESH_SHARE = 0.5
"""Groups older than this share of their limit are built anew, so that the first scores are not stale."""


def migrate() -> None:
    call_command("migrate", interactive=False, verbosity=0)


def collect_static() -> None:
    call_command("collectstatic", interactive=False, verbosity=0)


def ensure_api_key(place: DemoPlace, *, wanted: str) -> tuple[str, str]:
    """A valid key with all scopes: the one wanted, else the one of the last run, else a new one. And a note, in words.

    A key that an earlier version of the demo made gets the scopes that it lacks; one that somebody else made does not.
    Raises KeyRefused if the wanted one cannot be had.
    """
    added: list[str] = []
    key = wanted or place.secret("api_key")
    if key:
        added = widen_scopes(key=key, name=KEY_NAME, scopes=KEY_SCOPES)
    if wanted:
        issue_key(name=KEY_NAME, scopes=KEY_SCOPES, key=wanted)
    else:
        key = _last_key(key) or issue_key(name=KEY_NAME, scopes=KEY_SCOPES).key
    place.remember_secret("api_key", key)
    note = f"API key and admin login; the demo's key may now also {', '.join(added)}" if added else ""
    return key, note


def _last_key(key: str) -> str:
    if not key:
        return ""
    try:
        issue_key(name=KEY_NAME, scopes=KEY_SCOPES, key=key)
    except KeyRefused:
        return ""  # revoked meanwhile
    return key


def ensure_admin(place: DemoPlace) -> str:
    """The password of the superuser `admin`, who is made if needed. Empty if somebody else has set it."""
    password = place.secret("admin_password")
    user = User.objects.filter(username=ADMIN_NAME).first()
    if user is None:
        password = password or secrets.token_urlsafe(12)
        User.objects.create_superuser(ADMIN_NAME, password=password)
        place.remember_secret("admin_password", password)
    elif not (password and user.check_password(password)):
        return ""
    return password


def ensure_policies() -> str:
    """In a new installation some groups' freshness is proven, since the demo runs a relay. Which ones, in words."""
    if not Transaction.objects.exists():
        for policy in TtlPolicy.objects.filter(name__in=PROVEN_GROUPS):
            policy.freshness = TtlPolicy.Freshness.PROVEN
            # Other processes hear of every write within milliseconds, so their own copies are as good as L2's.
            policy.use_l1 = True
            policy.save()
    proven = TtlPolicy.objects.filter(freshness=TtlPolicy.Freshness.PROVEN).values_list("name", flat=True)
    return f"freshness proven for {', '.join(proven) or 'no group'}"


def ensure_data(
    place: DemoPlace, *, file: Path | None, customers: int, merchants: int, days: int, now: datetime
) -> str:
    """A ledger with transactions: simulated ones, or those of `file` moved to now. What was done, in words.

    A load that was interrupted is finished by the next call. Raises DemoRefused if the ledger holds other data.
    """
    source = str(file.resolve()) if file else "simulation"
    known = place.data_note()
    if Transaction.objects.exists() and known.get("state") != LOADING:
        held = known.get("from", "elsewhere")
        if file and held != source:
            raise DemoRefused(
                f"the ledger holds data from {held} already; `make clean` deletes them, or add the file to them: "
                f"manage.py import_transactions {file} --shift-to-now"
            )
        return f"{_ledger_in_words(now)}, as before"
    place.remember_data({"from": source, "state": LOADING})
    if file:
        _call("import_transactions", str(file), shift_to_now=True, rejects=place.folder / "data.rejects.csv")
    else:
        _call("simulate_transactions", customers=customers, merchants=merchants, days=days)
    place.remember_data({"from": source, "state": "loaded"})
    return _ledger_in_words(now)


def ensure_features(*, now: datetime) -> str:
    """All groups are there and well within their limits. What was built, in words."""
    built_at = dict(FeatureRow.objects.values_list("group").annotate(at=Min("as_of")))
    policies = policies_in_force()
    missing = [
        name
        for name in BUILT_GROUPS
        if name not in built_at
        or (
            GROUPS[name].cadence != "streaming"
            and (now - built_at[name]).total_seconds() > _FRESH_SHARE * policies[name].fresh_for_s
        )
    ]
    if not missing:
        return "all fresh, as before"
    # As a command, so that numpy and scikit-learn are loaded only if there is something to build.
    report = _call("build_features", groups=",".join(missing))
    return f"{sum(report['rows'].values()):,} rows in {len(missing)} groups"


def ensure_model() -> str:
    """A model is active. Which one, in words."""
    newest = Activation.objects.select_related("model_version").first()
    if newest is not None:
        return f"{newest.model_version}, as before"
    report = _call("train", activate=False)
    # A small demo has few frauds, and no other model; the history says what was overruled.
    reason = "the demo has no other model"
    activation = _call("model", "activate", str(report["model_version"]), force=True, reason=reason)
    doubts = f"; served all the same: {activation['overruled']}" if activation["overruled"] else ""
    return (
        f"{report['model_name']} {report['model_version']} ({report['estimator']}), "
        f"AUC {report['auc_roc']:.3f} on {report['test_rows']:,} transactions{doubts}"
    )


def _ledger_in_words(now: datetime) -> str:
    # A score may lie a day ahead of the clock; it says nothing about how far the data go.
    past = Transaction.objects.filter(occurred_at__lte=now).order_by("-occurred_at")
    newest = past.values_list("occurred_at", flat=True).first()
    until = f" up to {newest:%Y-%m-%d %H:%M} UTC" if newest else ""
    return f"{Transaction.objects.count():,} transactions{until}"


def _call(command: str, *args: str, **options: Any) -> dict[str, Any]:
    """Another command, with its progress on stderr; its result."""
    out = io.StringIO()
    call_command(command, *args, json=True, stdout=out, **options)
    result: dict[str, Any] = json.loads(out.getvalue())
    return result
