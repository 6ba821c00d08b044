from importlib import import_module

from django.apps import AppConfig

from mlserve.at_start import register_start
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
        register("model copy", diagnosis.diagnose_model_copy)
        active = import_module("predictions.registry.active")
        register_start("active-model", active.start_polling)
        register_check("activation", active.model_is_the_active_one, required=False)
        register("spool", spool.diagnose_spool)
        register_measurement("spool", spool.measure_spool)
        register("skew", diagnosis.diagnose_skew)
