"""`manage.py train` and `manage.py model`, from a ledger in Postgres to a model that serves."""

import json
import re
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from features.definitions import ALL_FEATURES, BASELINE_FEATURES
from features.models import Transaction
from mlserve.postgres.one_at_a_time import one_at_a_time
from predictions.models import Activation, ModelVersion
from predictions.registry import parity, train
from predictions.registry.active import load_model_version
from predictions.registry.flagging import MOST_FLAGGED
from predictions.registry.thresholds import COST_RATIOS
from tests.predictions.registry import examples
from tests.predictions.registry.ledgers import fill_ledger

pytestmark = pytest.mark.django_db
END = "2024-06-30T23:59:00Z"


def _json(command: str, *arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command(command, *arguments, "--json", stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@pytest.fixture
def ledger() -> None:
    fill_ledger()


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("estimator", ["logistic_regression", "decision_tree", "random_forest", "boosted_trees"])
def test_every_estimator_trains_registers_and_serves(estimator: str) -> None:
    """The report has the figures of the protocol; the newest periods are the default; the artifact loads and scores."""
    report = _json("train", "--estimator", estimator, "--features", "baseline")
    assert report["activated"] is True
    assert report["parity"]["passed"] is True
    assert 0.5 < report["auc_roc"] <= 1
    assert 0 < report["average_precision"] <= 1
    assert 0 < report["card_precision_at_100"] <= 1
    assert report["train_rows"] == pytest.approx(7 * 60, abs=5)
    assert 0 < report["train_frauds"] < report["train_rows"]
    assert 0 < report["test_frauds"] < report["test_rows"] < 7 * 60
    assert report["training"]["train_start"] == "2024-03-15"
    assert report["training"]["last_day"] == "2024-04-04"
    model_version = ModelVersion.objects.get(version=report["model_version"])
    assert tuple(model_version.feature_names) == BASELINE_FEATURES
    model = load_model_version(model_version)
    assert 0 <= model.score_one(model.baseline) <= 1
    assert model.digest == report["digest"]


def test_a_small_tree_on_simulated_payments_flags_what_can_be_looked_at() -> None:
    """Its few scores are no reason to send nearly every payment to review; what it flags is printed and stored."""
    call_command("simulate_transactions", "--customers", "1000", "--merchants", "500", "--days", "45", "--end", END)
    for kind in ("decision_tree", "boosted_trees"):
        report = _json("train", "--estimator", kind, "--features", "baseline", "--no-activate")
        assert 0 < report["flagged_share"] <= MOST_FLAGGED
        assert report["declined"] <= report["flagged"]
        stored = ModelVersion.objects.get(version=report["model_version"])
        assert stored.metrics["flagged_share"] == report["flagged_share"]
        assert report["average_precision_low"] <= report["average_precision"] <= report["average_precision_high"]


@pytest.mark.usefixtures("ledger")
def test_thresholds_are_a_choice() -> None:
    """What a missed fraud costs against a false decline: shown for some ratios, and taken with --cost-ratio."""
    shown = _json("train", "--features", "baseline")
    choices = {one["cost_ratio"]: one for one in shown["threshold_choices"]}
    assert list(choices) == list(COST_RATIOS)
    for one in choices.values():
        assert one["cost"] == one["cost_ratio"] * one["missed"] + one["false_declines"]
        assert one["missed"] + one["declined"] - one["false_declines"] == shown["test_frauds"]
    taken = _json("train", "--features", "baseline", "--cost-ratio", "20", "--no-activate")
    assert taken["thresholds"]["decline_from"] == choices[20.0]["decline_from"]
    assert taken["training"]["cost_ratio"] == 20


@pytest.mark.usefixtures("ledger")
def test_training_says_in_words_what_it_found(capsys: Any) -> None:
    """Flagged share, precision of decline, reliability, interval and what the days lack, each with its counts."""
    Transaction.objects.filter(occurred_at__date="2024-03-16").delete()
    call_command("train", "--estimator", "logistic_regression", "--features", "baseline")
    call_command("train", "--estimator", "logistic_regression", "--features", "baseline")
    said = capsys.readouterr().out
    for part in (
        r"flagged         flags \d+ of \d+ \(\d+\.\d\d%\), declines \d+ .*, precision of decline .*, recall ",
        r"95 % interval 0\.\d{3} to ",
        r"Brier 0\.\d+; 0 to 0\.01: \d+ rows score",
        r"choice          if a missed fraud costs 20 false declines: decline from 0\.\d+, \d+ declined",
        r"warning         1 of 7 training days have no labelled transaction: 2024-03-16",
        r"warning         the test period has \d+ frauds, fewer than 30",
        r"test transactions of \d+ customers were left out",
        r"candidate       fraud 2: average precision",
        r"champion        fraud 1: average precision",
        r"difference      \+0\.000 in average precision",
    ):
        assert re.search(part, said), part


@pytest.mark.usefixtures("ledger")
def test_training_again_gives_the_same_artifact() -> None:
    """Same ledger, options and seed: the same digest under the next version number."""
    first, second = (_json("train", "--no-activate", "--train-days", "10") for _ in range(2))
    assert second["digest"] == first["digest"]
    assert (first["model_version"], second["model_version"]) == (1, 2)
    assert first["features"] == list(ALL_FEATURES)
    assert not Activation.objects.exists()


@pytest.mark.usefixtures("ledger")
def test_a_wrong_artifact_is_registered_but_does_not_serve(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """An artifact that scores unlike scikit-learn is kept for inspection; activation is refused, by hand too."""
    _json("train", "--features", "baseline")
    monkeypatch.setattr(train, "export_onnx", lambda *_, **__: examples.onnx_of())
    with pytest.raises(CommandError, match="scores of ONNX and scikit-learn differ by up to"):
        call_command("train", "--features", "baseline", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["activated"] is False
    assert report["parity"]["max_difference"] > parity.MAX_DIFFERENCE
    assert ModelVersion.objects.count() == 2
    with pytest.raises(CommandError, match="may not serve"):
        call_command("model", "activate", "2")
    assert [one.model_version.version for one in Activation.objects.all()] == [1]


@pytest.mark.usefixtures("ledger")
def test_a_wrong_artifact_that_shall_not_serve_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --no-activate the command is done once the version is registered, and reports the failed parity."""
    monkeypatch.setattr(train, "export_onnx", lambda *_, **__: examples.onnx_of())
    assert _json("train", "--features", "baseline", "--no-activate")["parity"]["passed"] is False


def test_of_two_trainings_at_once_the_second_hears_who_trains() -> None:
    """And registers nothing."""
    with one_at_a_time("training"), pytest.raises(CommandError, match=r"^training: .* since .* by process") as refusal:
        call_command("train")
    assert refusal.value.returncode == 1
    assert not ModelVersion.objects.exists()


def test_an_empty_ledger_says_what_to_do() -> None:
    """Nothing to train on is an error with the next command in it."""
    with pytest.raises(CommandError, match=r"ledger is empty.*import_transactions"):
        call_command("train")


@pytest.mark.parametrize(
    ("ledger", "arguments", "message"),
    [
        ({"days": 20}, (), "does not hold 7 d of training"),
        ({}, ("--train-start", "2024-02-20"), "from 2024-03-01 00:19 to 2024-04-04 23:55"),
        ({}, ("--train-start", "2024-03-20"), "up to 2024-04-09"),
        ({"fraud_share": 0.0}, (), "training period has 420 transactions, 0 of them fraud"),
        ({"fraud_share": 1.0}, (), "420 of them fraud"),
    ],
)
def test_too_little_data_says_what_is_missing(ledger: dict[str, Any], arguments: tuple[str, ...], message: str) -> None:
    """Periods beyond the ledger and periods of one class are errors that name the numbers and the options."""
    fill_ledger(**ledger)
    with pytest.raises(CommandError, match=message) as caught:
        call_command("train", *arguments)
    assert "--train-start" in str(caught.value)
    assert not ModelVersion.objects.exists()


@pytest.mark.usefixtures("ledger")
def test_unlabelled_transactions_are_left_out_and_counted() -> None:
    """What was scored a moment ago has no label: it is not taken for genuine, and it does not stop the training."""
    whole = _json("train")
    Transaction.objects.filter(id="t001800").update(is_fraud=None)
    rest = _json("train")
    assert (whole["unlabelled_rows"], rest["unlabelled_rows"]) == (0, 1)
    rows = [report["train_rows"] + report["test_rows"] for report in (whole, rest)]
    assert rows[0] - rows[1] in (0, 1)


@pytest.mark.usefixtures("ledger")
def test_a_ledger_that_is_mostly_unlabelled_trains_nothing() -> None:
    """What is left would be no fair sample; the message counts, and names the first."""
    Transaction.objects.filter(id__lt="t001800").update(is_fraud=None)
    with pytest.raises(CommandError, match=r"\d+ of \d+ transactions in these days have no label, the first is t0"):
        call_command("train")


@pytest.mark.usefixtures("ledger")
def test_live_traffic_without_labels_does_not_move_the_default_periods() -> None:
    """The default ends with the newest labelled transaction, not with the newest one."""
    newest = Transaction.objects.get(id="t002099")
    Transaction.objects.create(
        id="live",
        occurred_at=newest.occurred_at.replace(year=2025),
        customer_id="c1",
        merchant_id="m1",
        amount=1,
    )
    assert (
        _json("train", "--estimator", "decision_tree")["training"]["last_day"] == newest.occurred_at.date().isoformat()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train-start", "25.7.2018"), "no day"),
        (("--train-start", "9999-12-31"), "not between 1970 and 2200"),
        (("--train-days", "0"), "not between 1 and"),
        (("--seed", "-1"), "not between 0 and"),
        (("--estimator", "magic"), "invalid choice"),
        (("--name", "a b"), "no model name"),
        (("--cost-ratio", "0"), "not between"),
        (("--cost-ratio", "nan"), "not between"),
        (("--cost-ratio", "x"), "is no number"),
    ],
)
def test_wrong_options_are_named(arguments: tuple[str, ...], message: str) -> None:
    """Usage errors name the option and what it takes."""
    with pytest.raises(CommandError, match=message):
        call_command("train", *arguments)


@pytest.mark.usefixtures("ledger")
def test_activate_and_roll_back_by_hand() -> None:
    """Activation and rollback are new rows; the list marks the one that serves."""
    for _ in range(2):
        _json("train", "--estimator", "decision_tree")
    assert _json("model", "rollback")["version"] == 1
    assert _json("model", "activate", "2")["version"] == 2
    listed = {one["version"]: one["active"] for one in _json("model", "list")["models"]}
    assert listed == {1: False, 2: True}
    assert Activation.objects.count() == 4
    with pytest.raises(CommandError, match=r"no model fraud 7\. Known: fraud 1, fraud 2"):
        call_command("model", "activate", "7")


def test_nothing_to_roll_back_to() -> None:
    """A rollback without a model that served before is an error."""
    with pytest.raises(CommandError, match="nothing to roll back to"):
        call_command("model", "rollback")
    with pytest.raises(CommandError, match="takes the number") as caught:
        call_command("model", "activate")
    assert caught.value.returncode == 2
