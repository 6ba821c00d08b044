"""The model versions as `GET /v1/models` shows them."""

from typing import Any

import msgspec

from mlserve.api.moments import Instant
from predictions.missing import OnMissingSource
from predictions.models import Activation, ModelVersion


class ThresholdsShown(msgspec.Struct, frozen=True):
    """Scores from `review` on are reviewed, from `decline` on declined."""

    review: float
    decline: float


class ModelShown(msgspec.Struct, frozen=True, kw_only=True):
    """`active` is the version that serves. `metrics` are those of the training's test days."""

    name: str
    version: int
    active: bool
    estimator: str
    features: list[str]
    thresholds: ThresholdsShown
    on_missing_source: OnMissingSource
    metrics: dict[str, Any]
    digest: str
    created_at: Instant


class ModelList(msgspec.Struct, frozen=True):
    """Newest first."""

    models: list[ModelShown]


def list_models() -> ModelList:
    """Every registered version, without its artifact."""
    active = Activation.objects.values_list("model_version_id", flat=True).first()
    return ModelList(models=[_shown(version, active=version.pk == active) for version in ModelVersion.objects.all()])


def _shown(version: ModelVersion, *, active: bool) -> ModelShown:
    return ModelShown(
        name=version.name,
        version=version.version,
        active=active,
        estimator=version.estimator,
        features=version.feature_names,
        thresholds=ThresholdsShown(review=version.review_from, decline=version.decline_from),
        on_missing_source=OnMissingSource(version.on_missing_source),
        metrics=version.metrics,
        digest=version.digest,
        created_at=version.created_at,
    )
