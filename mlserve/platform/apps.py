"""The app that holds what belongs to the platform and to no domain: services, diagnosis, checks, Celery."""

from importlib import import_module

from django.apps import AppConfig


class PlatformConfig(AppConfig):
    name = "mlserve.platform"
    label = "platform"

    def ready(self) -> None:
        # Each of these registers itself when it is imported: the Celery application as the process's current one,
        # the system checks with Django, the engines with the doctor.
        for module in ("mlserve.celery", "mlserve.checks", "mlserve.platform.engines"):
            import_module(module)
