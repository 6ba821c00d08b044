from importlib import import_module

from django.apps import AppConfig

from mlserve.health import register_check
from mlserve.observability.measurements import register_measurement
from mlserve.platform.diagnosis import register


class PredictionsConfig(AppConfig):
    name = "predictions"

    def ready(self) -> None:
        diagnosis = import_module("predictions.diagnosis")  # models exist only now
        spool = import_module("predictions.spooled.diagnosis")
        register_check("model", diagnosis.model_is_active, required=True)
        register_check("spool", spool.spool_is_sound, required=False)
        register("model", diagnosis.diagnose_model)
        register("spool", spool.diagnose_spool)
        register_measurement("spool", spool.measure_spool)
