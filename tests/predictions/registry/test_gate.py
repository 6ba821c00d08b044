"""Which versions may serve, and what is kept where somebody forces one."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from features.models import Transaction
from predictions.models import Activation, Comparison, ModelArtifact, ModelVersion
from predictions.registry import gate
from predictions.registry.artifact import artifact_digest
from predictions.registry.comparison import compare_with_serving
from predictions.registry.gate import QualityRefused, promote
from predictions.registry.register import ActivationRefused
from tests.console.records import comparison_report, make_model
from tests.predictions.registry import examples
from tests.predictions.registry.ledgers import fill_ledger

pytestmark = pytest.mark.django_db


def _json(command: str, *arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command(command, *arguments, "--json", stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def _serving_and_candidate() -> tuple[ModelVersion, ModelVersion]:
    serving, candidate = make_model(1), make_model(2, seed=1)
    promote(serving)
    return serving, candidate


def _change(version: ModelVersion, **metrics: Any) -> None:
    ModelVersion.objects.filter(pk=version.pk).update(metrics={**version.metrics, **metrics})
    version.refresh_from_db()


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"flagged": 4900}, "it flags 4900 of 5000 held-out transactions (98.0%)"),
        ({"declined": 2000, "flagged": 2000}, "it declines 2000 of 5000"),
        ({"flagged": 0, "declined": 0}, "it flags none of 5000"),
        ({"flagged": None}, "never measured"),
        ({"test_frauds": 9}, "its testing days had 9 frauds; at least 10"),
        ({"train_frauds": 9}, "its training days had 9 frauds; at least 10"),
        ({"train_frauds": None}, "does not say how many frauds"),
    ],
)
def test_what_should_not_serve_is_refused_and_can_be_forced(metrics: dict[str, Any], said: str) -> None:
    """With the numbers; the reason and what was overruled stay in the history."""
    version = make_model(1)
    _change(version, **metrics)
    with pytest.raises(QualityRefused) as refused:
        promote(version)
    assert said in str(refused.value)
    assert "model activate 1 --name fraud --force --reason" in str(refused.value)
    with pytest.raises(CommandError):
        call_command("model", "activate", "1", "--reason", "without force")
    assert not Activation.objects.exists()
    report = _json("model", "activate", "1", "--force", "--reason", "a drill")
    activation = Activation.objects.get()
    assert activation.reason == report["reason"] == "a drill"
    assert said in activation.overruled
    assert activation.overruled == report["overruled"]


def test_forcing_needs_a_reason() -> None:
    """At the command it is a usage error, and so it is with anything but `activate`."""
    version = make_model(1)
    with pytest.raises(ActivationRefused, match="needs a reason"):
        promote(version, force=True, reason=" ")
    for arguments in (("activate", "1", "--force"), ("rollback", "--force", "--reason", "x")):
        with pytest.raises(CommandError, match="--force goes with") as caught:
            call_command("model", *arguments)
        assert caught.value.returncode == 2


def test_what_cannot_serve_cannot_be_forced() -> None:
    """Parity and a sound artifact are no matter of opinion."""
    version = make_model(1, passed=False)
    with pytest.raises(ActivationRefused, match="may not serve"):
        promote(version, force=True, reason="please")
    good = make_model(2)
    ModelArtifact.objects.filter(pk=good.pk).update(onnx=b"torn")
    with pytest.raises(ActivationRefused, match="may not serve"):
        promote(good, force=True, reason="please")


def test_a_version_that_is_worse_beyond_chance_is_refused() -> None:
    """The message has both figures, their difference, its interval and the days."""
    serving, candidate = _serving_and_candidate()
    worse = comparison_report(difference={"value": -0.2, "low": -0.3, "high": -0.1})
    Comparison.objects.create(candidate=candidate, champion=serving, report=worse)
    with pytest.raises(QualityRefused, match=r"worse than fraud 1.*50 frauds.*interval -0\.300 to -0\.100"):
        promote(candidate)
    Comparison.objects.create(candidate=candidate, champion=serving, report=comparison_report())
    assert promote(candidate).overruled == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frauds": 3}, "compared with fraud 1 on 3 frauds"),
        ({"candidate": {**comparison_report()["candidate"], "flagged": 4000}}, "flags 4000 of 5000"),
    ],
)
def test_a_comparison_that_tells_nothing_or_too_much_is_refused(changes: dict[str, Any], said: str) -> None:
    """Few frauds, or flags that nobody can look at on the days that both were compared on."""
    serving, candidate = _serving_and_candidate()
    Comparison.objects.create(candidate=candidate, champion=serving, report=comparison_report(**changes))
    with pytest.raises(QualityRefused, match=said):
        promote(candidate)


def test_a_comparison_with_what_served_before_does_not_count() -> None:
    """Only one with what serves now."""
    _, candidate = _serving_and_candidate()
    other = make_model(3, seed=2)
    Comparison.objects.create(candidate=candidate, champion=other, report=comparison_report())
    with pytest.raises(QualityRefused, match=r"not compared with fraud 1, which serves: `manage.py model compare 2"):
        promote(candidate)


def test_what_serves_and_cannot_be_loaded_stands_in_nobodys_way() -> None:
    """Nothing can be compared with it, and whatever serves is better."""
    serving, candidate = _serving_and_candidate()
    ModelArtifact.objects.filter(pk=serving.pk).update(onnx=b"torn")
    assert compare_with_serving(candidate) is None
    assert promote(candidate).model_version == candidate


def test_a_rollback_asks_for_no_comparison() -> None:
    """What served before is wanted back at once."""
    serving, candidate = _serving_and_candidate()
    promote(candidate, force=True, reason="try")
    assert _json("model", "rollback")["version"] == serving.version


def test_a_ledger_without_the_days_is_said() -> None:
    """By `activate`, which compares first: that it could not look is no leave to serve."""
    _serving_and_candidate()
    with pytest.raises(CommandError, match="not recorded on which days fraud 2 and fraud 1"):
        call_command("model", "activate", "2")
    assert Activation.objects.count() == 1


def test_trained_versions_are_compared_on_the_same_days() -> None:
    """Side by side; what flags half of these days is refused, by `compare` and by `activate`."""
    fill_ledger()
    _json("train", "--estimator", "boosted_trees", "--features", "baseline")
    second = _json("train", "--estimator", "random_forest", "--features", "baseline", "--no-activate")
    assert second["comparison"] is None
    compared = _json("model", "compare", "2")["comparison"]
    assert (compared["candidate"]["version"], compared["champion"]["version"]) == ("fraud 2", "fraud 1")
    assert (compared["first_day"], compared["last_day"]) == ("2024-03-29", "2024-04-04")
    of_days = Transaction.objects.filter(occurred_at__date__range=("2024-03-29", "2024-04-04"))
    assert (compared["rows"], compared["frauds"]) == (of_days.count(), of_days.filter(is_fraud=True).count())
    assert compared["difference"]["low"] <= compared["difference"]["value"] <= compared["difference"]["high"]

    onnx = examples.onnx_of()
    stupid = ModelVersion.objects.get(version=2)
    ModelArtifact.objects.filter(model_version=stupid).update(onnx=onnx)
    ModelVersion.objects.filter(pk=stupid.pk).update(digest=artifact_digest(onnx), review_from=1e-4, decline_from=2e-4)
    for command in ("compare", "activate"):
        with pytest.raises(CommandError, match="of 420 held-out transactions"):
            call_command("model", command, "2")
    assert Activation.objects.latest("id").model_version.version == 1


def test_an_older_version_is_compared_on_days_that_neither_was_trained_on() -> None:
    """And refused where it is worse beyond chance; a version that knew the answers would look good."""
    fill_ledger()
    old = ("--estimator", "decision_tree", "--features", "baseline", "--train-start", "2024-03-03")
    _json("train", *old, "--no-activate")
    _json("train", "--estimator", "decision_tree", "--features", "baseline")
    with pytest.raises(CommandError, match="it is worse than fraud 2, which serves"):
        call_command("model", "activate", "1")
    assert Comparison.objects.get().report["first_day"] == "2024-03-29"
    trained = ModelVersion.objects.get(version=1)
    ModelVersion.objects.filter(pk=trained.pk).update(training={**trained.training, "train_days": 40})
    with pytest.raises(CommandError, match="no day is left to compare"):
        call_command("model", "compare", "1")


def test_the_minimum_is_stated() -> None:
    """In the guide."""
    page = Path(settings.BASE_DIR, "docs/how-to/train-and-activate.md").read_text(encoding="utf-8")
    assert f"fewer than {gate.MIN_FRAUDS} frauds" in page.replace("\n", " ")
