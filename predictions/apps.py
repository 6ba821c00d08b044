from django.apps import AppConfig

from mlserve.health import register_check


class PredictionsConfig(AppConfig):
    name = "predictions"

    def ready(self) -> None:
        from predictions.registry.active import current_model  # models exist only now

        def model_is_active() -> str:
            model = current_model()
            return f"{model.name} {model.version} is active"

        register_check("model", model_is_active, required=True)
