"""What health and doctor say of the model that serves."""

from collections.abc import Iterator

from mlserve.platform.diagnosis import Finding, Level
from predictions.models import Activation
from predictions.registry.active import current_model, load_model_version


def model_is_active() -> str:
    """For `/healthz/ready`: which model this process serves. Raises NoActiveModel and what loading raises."""
    model = current_model()
    return f"{model.name} {model.version} is active"


def diagnose_model() -> Iterator[Finding]:
    """The newest activation must name an artifact that loads."""
    activation = Activation.objects.select_related("model_version__artifact").first()
    if activation is None:
        yield Finding(
            subject="model",
            level=Level.FAIL,
            detail="none is active",
            fix="run `manage.py train`, or `manage.py model activate VERSION`",
        )
        return
    load_model_version(activation.model_version)
    yield Finding(
        subject="model",
        level=Level.OK,
        detail=f"{activation.model_version} is active since {activation.at:%Y-%m-%d %H:%M:%S} UTC",
    )
