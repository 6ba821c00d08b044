from django.apps import AppConfig
from django.db.models.signals import post_migrate


class FeaturesConfig(AppConfig):
    name = "features"

    def ready(self) -> None:
        from features.synchronise import synchronise_definitions  # models exist only now

        post_migrate.connect(synchronise_definitions, sender=self)
