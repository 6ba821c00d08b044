"""What the group `operators` may do: watch everything, set TTL policies, activate models. Kept on every migrate."""

from typing import Any

from django.apps import AppConfig
from django.apps import apps as global_apps
from django.apps.registry import Apps
from django.contrib.auth.management import create_permissions

GROUP_NAME = "operators"

PERMISSIONS: dict[str, tuple[str, ...]] = {
    "console": ("view_cacheoverview",),
    "features": (
        "view_ttlpolicy",
        "change_ttlpolicy",
        "view_policyrevision",
        "view_inspectionfinding",
        "view_transaction",
        "view_labelreport",
        "view_featuregrouprecord",
        "view_featurerecord",
    ),
    "predictions": ("view_modelversion", "view_activation", "add_activation", "view_decision"),
    "django_celery_beat": ("view_periodictask", "change_periodictask", "view_intervalschedule", "view_crontabschedule"),
}
"""By app label. What is not named (users, API keys, deleting anything) is a superuser's matter."""


def grant_operators(
    app_config: AppConfig, *, using: str, apps: Apps = global_apps, verbosity: int = 1, **_: Any
) -> None:
    """Gives the group the permissions that it should have in `app_config`. Idempotent; takes nothing away."""
    codenames = PERMISSIONS.get(app_config.label)
    if not codenames:
        return
    # Django makes permissions on the same signal, perhaps after this: so ask for them first.
    create_permissions(app_config, verbosity=verbosity, using=using, apps=apps)
    group, _created = apps.get_model("auth", "Group").objects.using(using).get_or_create(name=GROUP_NAME)
    permissions = apps.get_model("auth", "Permission").objects.using(using)
    group.permissions.add(
        *permissions.filter(content_type__app_label=app_config.label, codename__in=codenames),
    )
