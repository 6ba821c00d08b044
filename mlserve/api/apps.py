from importlib import import_module

from django.apps import AppConfig


class ApiConfig(AppConfig):
    name = "mlserve.api"
    label = "api"
    verbose_name = "API access"

    def ready(self) -> None:
        # Registers the security scheme with drf-spectacular when it is imported.
        import_module("mlserve.api.openapi")
