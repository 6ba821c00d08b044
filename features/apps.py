from importlib import import_module

from django.apps import AppConfig
from django.db.models.signals import post_migrate

from mlserve.at_start import register_start
from mlserve.health import register_check
from mlserve.platform.diagnosis import register


class FeaturesConfig(AppConfig):
    name = "features"

    def ready(self) -> None:
        # Models exist only now.
        post_migrate.connect(import_module("features.synchronise").synchronise_definitions, sender=self)
        diagnosis = import_module("features.diagnosis")
        register("policies", diagnosis.diagnose_policies)
        register("policies copy", diagnosis.diagnose_policies_copy)
        register("features", diagnosis.diagnose_features)
        register("ledger", diagnosis.diagnose_ledger)
        register("relay", diagnosis.diagnose_relay)
        register("guards", diagnosis.diagnose_guards)
        import_module("features.checks")
        policies = import_module("features.policies")
        register_start("policies", policies.start_polling)
        register_check("policies", policies.policies_are_confirmed, required=False)
