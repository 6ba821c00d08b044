from importlib import import_module

from django.apps import AppConfig

from mlserve.health import register_check
from mlserve.platform.diagnosis import register


class PredictionsConfig(AppConfig):
    name = "predictions"

    def ready(self) -> None:
        diagnosis = import_module("predictions.diagnosis")  # models exist only now
        register_check("model", diagnosis.model_is_active, required=True)
        register("model", diagnosis.diagnose_model)
        register("skew", diagnosis.diagnose_skew)
