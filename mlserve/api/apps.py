from importlib import import_module

from django.apps import AppConfig

from mlserve.at_start import register_start


class ApiConfig(AppConfig):
    name = "mlserve.api"
    label = "api"
    verbose_name = "API access"

    def ready(self) -> None:
        # Registers the security scheme with drf-spectacular when it is imported.
        import_module("mlserve.api.openapi")
        register_start("api-keys", import_module("mlserve.api.key_copy").key_copy.poller.ensure_started)
