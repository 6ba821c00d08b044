"""Two apps: Django's admin on the console's site, and the console's own pages, templates and permission."""

from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps  # not its class: Django would find two default configurations
from django.db.models.signals import post_migrate


class ConsoleConfig(AppConfig):
    default = True
    name = "mlserve.console"

    def ready(self) -> None:
        from mlserve.console.operators import grant_operators  # needs the loaded apps

        post_migrate.connect(grant_operators)


class ConsoleAdminConfig(admin_apps.AdminConfig):
    default = False
    default_site = "mlserve.console.site.ConsoleAdminSite"
