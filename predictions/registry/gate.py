"""Whether a model version that can serve also should: the gate at every door but a rollback, which is an emergency.

Refused is what is worse than the version that serves, on the same transactions and beyond chance; what has seen too few
frauds to tell; and thresholds that flag more, or fewer, than can be meant. Somebody who knows better may force it, with
a reason; what spoke against it stays in the history. What cannot serve at all (`check_servable`) nobody can force.
"""

from collections.abc import Callable
from typing import Any

from predictions.models import Activation, Comparison, ModelVersion
from predictions.registry.active import load_model_version
from predictions.registry.artifact import ArtifactRefused
from predictions.registry.flagging import what_is_implausible
from predictions.registry.register import ActivationRefused, activate, check_servable

MIN_FRAUDS = 10
"""In training, in testing and among what two versions are compared on: fewer say nothing."""
HOW_TO_FORCE = "`manage.py model activate {version} --name {name} --force --reason REASON`"


class QualityRefused(ActivationRefused):
    """This model version can serve, but should not. `objections` say why, each by itself."""

    def __init__(self, model_version: ModelVersion, objections: list[str]) -> None:
        self.objections = objections
        how = HOW_TO_FORCE.format(version=model_version.version, name=model_version.name)
        super().__init__(
            f"model {model_version} is registered, but should not serve: {'; '.join(objections)}. To let it serve all "
            f"the same: {how}"
        )


def promote(
    model_version: ModelVersion,
    *,
    reason: str = "",
    force: bool = False,
    compare: Callable[[ModelVersion], str | None] | None = None,
) -> Activation:
    """Activates the version if nothing speaks against it, or all the same with `force`, which needs a reason.

    `compare` is asked where it has not been compared with what serves, and returns why it could not. Raises
    ActivationRefused where it cannot serve, QualityRefused where it should not.
    """
    if force and not reason.strip():
        raise ActivationRefused("forcing a model version needs a reason, which is kept in the history (--reason)")
    check_servable(model_version)
    why = compare(model_version) if compare is not None and not force and _must_be_compared(model_version) else None
    objections = objections_to(model_version, why_not_compared=why)
    if objections and not force:
        raise QualityRefused(model_version, objections)
    return activate(model_version, reason=reason, overruled="; ".join(objections))


def objections_to(model_version: ModelVersion, *, why_not_compared: str | None = None) -> list[str]:
    """What speaks against a version, by what is stored of it; nothing if it may serve."""
    return [
        *_too_few_frauds(model_version.metrics),
        *_implausible(model_version.metrics),
        *_worse_than_serving(model_version, why_not_compared),
    ]


def newest_comparison(model_version: ModelVersion) -> Comparison | None:
    """With what serves now."""
    serving = Activation.objects.values_list("model_version_id", flat=True).first()
    return Comparison.objects.filter(candidate=model_version, champion_id=serving).select_related("champion").first()


def _too_few_frauds(metrics: dict[str, Any]) -> list[str]:
    found = []
    for period in ("train", "test"):
        frauds = metrics.get(f"{period}_frauds")
        if not isinstance(frauds, int):
            found.append(f"its training does not say how many frauds its {period}ing days had (at least {MIN_FRAUDS})")
        elif frauds < MIN_FRAUDS:
            found.append(f"its {period}ing days had {frauds} frauds; at least {MIN_FRAUDS} are needed to tell anything")
    return found


def _implausible(metrics: dict[str, Any]) -> list[str]:
    names = ("test_rows", "test_frauds", "flagged", "declined")
    rows, frauds, flagged, declined = (metrics.get(name) for name in names)
    if not (
        isinstance(rows, int) and isinstance(frauds, int) and isinstance(flagged, int) and isinstance(declined, int)
    ):
        return ["what its thresholds flag was never measured on held-out transactions: train it again"]
    return what_is_implausible(rows=rows, frauds=frauds, flagged=flagged, declined=declined)


def _must_be_compared(model_version: ModelVersion) -> bool:
    serving = Activation.objects.select_related("model_version").first()
    if serving is None or serving.model_version_id == model_version.pk or newest_comparison(model_version) is not None:
        return False
    try:
        load_model_version(serving.model_version)
    except ArtifactRefused:  # it cannot be scored with, and whatever serves is better
        return False
    return True


def _worse_than_serving(model_version: ModelVersion, why_not_compared: str | None) -> list[str]:
    comparison = newest_comparison(model_version)
    if comparison is None:
        if not _must_be_compared(model_version):
            return []
        serving = Activation.objects.select_related("model_version").latest("id").model_version
        how = f"`manage.py model compare {model_version.version} --name {model_version.name}` does it"
        return [f"it was not compared with {serving}, which serves: {why_not_compared or how}"]
    report = comparison.report
    days = f"{report['first_day']} to {report['last_day']}"
    found = []
    if report["frauds"] < MIN_FRAUDS:
        found.append(
            f"it was compared with {comparison.champion} on {report['frauds']} frauds ({days}); at least {MIN_FRAUDS} "
            "are needed to tell anything"
        )
    candidate, difference = report["candidate"], report["difference"]
    if difference["high"] < 0:
        found.append(
            f"it is worse than {comparison.champion}, which serves, on {report['rows']} transactions with "
            f"{report['frauds']} frauds ({days}): average precision {candidate['average_precision']:.3f} against "
            f"{report['champion']['average_precision']:.3f}, a difference of {difference['value']:+.3f} (95 % interval "
            f"{difference['low']:+.3f} to {difference['high']:+.3f})"
        )
    found += what_is_implausible(
        rows=report["rows"],
        frauds=report["frauds"],
        flagged=candidate["flagged"],
        declined=candidate["declined"],
    )
    return found
