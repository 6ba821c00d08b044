"""What health and doctor say of the model that serves, and of the copy that this host keeps of it."""

from collections.abc import Iterator
from datetime import timedelta

from django.db.models import Min
from django.utils import timezone

from mlserve.local_copy import Unusable, moment
from mlserve.platform.diagnosis import Finding, Level
from predictions.models import Activation, Decision, SkewCheck
from predictions.registry.active import current_model, load_model_version
from predictions.registry.artifact import ArtifactRefused
from predictions.registry.model_copy import ModelCopy

MAX_SKEW_CHECK_AGE = timedelta(days=2)
"""Beat checks every day."""


def model_is_active() -> str:
    """For `/healthz/ready`: which model this process serves. Raises NoActiveModel and what loading raises."""
    model = current_model()
    return f"{model.name} {model.version} serves"


def diagnose_model() -> Iterator[Finding]:
    """The newest activation must name an artifact that loads."""
    activation = Activation.objects.select_related("model_version").first()
    if activation is None:
        yield Finding(
            subject="model",
            level=Level.FAIL,
            detail="none is active",
            fix="run `manage.py train`, or `manage.py model activate VERSION`",
        )
        return
    try:
        load_model_version(activation.model_version)
    except ArtifactRefused as refused:
        yield Finding(
            subject="model",
            level=Level.FAIL,
            detail=f"{activation.model_version} is active and cannot be loaded: {refused.detail}. Processes go on with "
            "what they have; new ones take their host's copy, flagged unless it is of these very bytes",
            fix="restore the version's row and artifact from a backup, or `manage.py model rollback`",
        )
        return
    yield Finding(
        subject="model",
        level=Level.OK,
        detail=f"{activation.model_version} is active since {activation.at:%Y-%m-%d %H:%M:%S} UTC",
    )


def diagnose_model_copy() -> Iterator[Finding]:
    """What a process that starts on this host while PostgreSQL is away would score with."""
    try:
        kept = ModelCopy().read()
    except FileNotFoundError:
        detail = "none on this host: a process that starts while PostgreSQL is away could not score"
        yield Finding(subject="model copy", level=Level.OK, detail=detail)
    except (OSError, Unusable, ArtifactRefused) as error:
        yield Finding(
            subject="model copy",
            level=Level.WARN,
            detail=f"cannot be used: {error}",
            fix="a running web process replaces it within a minute, if the disk takes it; else look at its log",
        )
    else:
        model = kept.content
        detail = f"{model.name} {model.version}, activation {model.activation_id}, as of {moment(kept.confirmed_at)}"
        yield Finding(subject="model copy", level=Level.OK, detail=detail)


def diagnose_skew() -> Iterator[Finding]:
    """Decisions must have been given on the values that training has, and somebody must look whether they were."""
    now = timezone.now()
    newest = SkewCheck.objects.first()
    if newest is not None and newest.differing:
        names = [name for name, of in newest.report["features"].items() if of["differing"]]
        yield Finding(
            subject="skew",
            level=Level.FAIL,
            detail=f"{newest.differing:,} of {newest.compared:,} served values were not those of training on "
            f"{newest.at:%Y-%m-%d %H:%M} UTC: {', '.join(names)}",
            fix="`manage.py training_serving_skew` shows examples; rows that somebody else changed are mended by "
            "`manage.py build_features`",
        )
        return
    checked_at = newest.at if newest is not None else None
    since = checked_at or Decision.objects.aggregate(first=Min("decided_at"))["first"]
    if since is not None and now - since > MAX_SKEW_CHECK_AGE:
        yield Finding(
            subject="skew",
            level=Level.WARN,
            detail=f"served features have not been compared with training's since {since:%Y-%m-%d %H:%M} UTC",
            fix="keep beat and a worker of the queue `build` running, or run `manage.py training_serving_skew`",
        )
        return
    detail = "nothing to compare with training yet"
    if newest is not None:
        detail = f"{newest.compared:,} served values are those of training, {newest.at:%Y-%m-%d %H:%M} UTC"
    yield Finding(subject="skew", level=Level.OK, detail=detail)
