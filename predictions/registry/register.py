"""Model versions into Postgres, and which of them serves."""

from dataclasses import asdict
from importlib.metadata import version as library_version
from typing import TYPE_CHECKING, Any

from django.db import connection, transaction
from django.db.models import Max

from mlserve.errors import MlserveError
from predictions.models import Activation, ModelArtifact, ModelVersion
from predictions.registry.active import load_model_version
from predictions.registry.artifact import ArtifactRefused, LoadedModel, artifact_digest

if TYPE_CHECKING:  # web processes activate, but never train: they do without scikit-learn
    from predictions.registry.train import TrainedModel

_LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "skops")


class ActivationRefused(MlserveError):
    """This model version may not serve. The message says why and what is allowed."""


class UnknownModelVersion(MlserveError):
    """There is no such model version. The message names those that there are."""


def register(trained: "TrainedModel") -> ModelVersion:
    """Stores a model version under the next number of its name. It does not serve until it is activated."""
    plan = trained.plan
    with transaction.atomic():
        model_version = ModelVersion.objects.create(
            name=plan.model_name,
            version=_next_version(plan.model_name),
            estimator=plan.kind.value,
            feature_names=list(plan.feature_names),
            feature_baseline=list(trained.baseline),
            review_from=trained.thresholds.review_from,
            decline_from=trained.thresholds.decline_from,
            digest=artifact_digest(trained.onnx_bytes),
            metrics={
                **asdict(trained.quality),
                **_on_held_out(trained),
                "train_rows": trained.train_rows,
                "train_frauds": trained.train_frauds,
                "test_rows": trained.test_rows,
                "test_frauds": trained.test_frauds,
                "unlabelled_rows": trained.unlabelled_rows,
            },
            training={
                "train_start": plan.periods.train_start.isoformat(),
                "train_days": plan.periods.train_days,
                "delay_days": plan.periods.delay_days,
                "test_days": plan.periods.test_days,
                "last_day": plan.periods.last_day.isoformat(),
                "seed": plan.seed,
                "cost_ratio": plan.cost_ratio,
                "warnings": list(trained.warnings),
                "libraries": {name: library_version(name) for name in _LIBRARIES},
            },
            parity={**asdict(trained.parity), "passed": trained.parity.passed, "summary": str(trained.parity)},
        )
        ModelArtifact.objects.create(model_version=model_version, onnx=trained.onnx_bytes, skops=trained.skops_bytes)
    return model_version


def _on_held_out(trained: "TrainedModel") -> dict[str, Any]:
    found: dict[str, Any] = {}
    if trained.precision_interval is not None:
        found["average_precision_low"] = trained.precision_interval.low
        found["average_precision_high"] = trained.precision_interval.high
    if trained.at_thresholds is not None:
        found |= {
            **asdict(trained.at_thresholds),
            "reliability": list(trained.reliability),
            "threshold_choices": list(trained.choices),
        }
    return found


def activate(model_version: ModelVersion, *, reason: str = "", overruled: str = "") -> Activation:
    """Lets a model version serve, in every process within a second. How good it is, `gate.promote` asks.

    Raises ActivationRefused unless it can serve (`check_servable`).
    """
    check_servable(model_version)
    return Activation.objects.create(model_version=model_version, reason=reason, overruled=overruled)


def check_servable(model_version: ModelVersion) -> LoadedModel:
    """The version as serving processes will load it.

    Raises ActivationRefused unless it passed the parity gate, its stored artifact still is what was registered and this
    release can derive its vector.
    """
    if model_version.parity.get("passed") is not True:
        summary = model_version.parity.get("summary", "it was never compared with scikit-learn")
        raise ActivationRefused(
            f"model {model_version} is registered, but may not serve: {summary}. Train it again with another "
            "--estimator or other --features"
        )
    try:
        return load_model_version(ModelVersion.objects.select_related("artifact").get(pk=model_version.pk))
    except ArtifactRefused as refused:
        raise ActivationRefused(f"model {model_version} may not serve: {refused}") from refused


def roll_back(*, reason: str = "rollback") -> Activation:
    """Takes back the present activation: the version of the one before serves again.

    Each further rollback goes further back, and none returns to a version that was taken back since. Versions that
    cannot serve any more are passed over, and the activation's reason names them. How good a version is, nobody asks:
    it has served. Raises ActivationRefused if nothing is left.
    """
    present = Activation.objects.first()
    if present is None:
        raise ActivationRefused("no model version has served before: there is nothing to roll back to")
    holds = _that_holds(present)
    taken_back = set(
        Activation.objects.filter(id__gt=holds.pk, id__lte=present.pk).values_list("model_version_id", flat=True)
    )
    unwanted = {*taken_back, present.model_version_id}
    passed_over = ""
    earlier = _before(holds)
    while earlier is not None:
        holds, earlier = earlier, _before(earlier)
        version = holds.model_version
        if version.pk in unwanted:
            continue
        unwanted.add(version.pk)
        try:
            check_servable(version)
        except ActivationRefused as refused:
            passed_over += f"; passed over: {refused.detail}"
            continue
        return Activation.objects.create(model_version=version, reason=f"{reason}{passed_over}", restores=holds.pk)
    others = "" if len(unwanted) < 2 else " but what was taken back"
    raise ActivationRefused(
        f"no other model version has served before{others}: there is nothing to roll back to{passed_over}. "
        "`manage.py model activate VERSION` lets one serve by its number"
    )


def _that_holds(activation: Activation) -> Activation:
    """The activation itself or, of a rollback, the one that it restored."""
    if activation.restores is None:
        return activation
    earlier = Activation.objects.filter(id__lt=activation.pk).select_related("model_version")
    return earlier.filter(pk=activation.restores).first() or activation


def _before(activation: Activation) -> Activation | None:
    """The activation that held when this one was made."""
    before = Activation.objects.filter(id__lt=activation.pk).select_related("model_version").first()
    return None if before is None else _that_holds(before)


def find_model_version(*, name: str, version: int) -> ModelVersion:
    """Raises UnknownModelVersion."""
    found = ModelVersion.objects.filter(name=name, version=version).first()
    if found is None:
        known = ModelVersion.objects.order_by("name", "version")
        listed = ", ".join(str(one) for one in known[:50]) or "none; `manage.py train` makes one"
        raise UnknownModelVersion(f"there is no model {name} {version}. Known: {listed}")
    return found


def _next_version(name: str) -> int:
    """The next free number; others who register this name wait until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"model version of {name}"])
    highest: int | None = ModelVersion.objects.filter(name=name).aggregate(highest=Max("version"))["highest"]
    return (highest or 0) + 1
