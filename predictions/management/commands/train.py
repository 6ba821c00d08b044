"""Trains, registers and activates a model: `manage.py train --estimator boosted_trees`."""

import json
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from features.definitions import ALL_FEATURES, BASELINE_FEATURES
from features.progress import Progress, shown
from mlserve.errors import MlserveError
from mlserve.postgres.one_at_a_time import one_at_a_time
from predictions.models import ModelVersion
from predictions.registry.comparison import why_not_compared
from predictions.registry.estimators import EstimatorKind
from predictions.registry.gate import promote
from predictions.registry.register import ActivationRefused, register
from predictions.registry.report import compared_in_words, held_out_in_words
from predictions.registry.stages import Stages
from predictions.registry.train import TrainedModel, TrainingPlan, periods_in_ledger, train

_MOST_DAYS = 3650
_LEAST_RATIO, _MOST_RATIO = 0.01, 10_000
_FEATURES = {"baseline": BASELINE_FEATURES, "all": ALL_FEATURES}


class Command(BaseCommand):
    help = (
        "Trains a model on the ledger by the protocol of the Fraud Detection Handbook, point in time; registers it as "
        "a model version; activates it if its ONNX artifact scores and decides as scikit-learn does, its thresholds "
        "flag a plausible share and it is not worse than the version that serves, on the same transactions."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--estimator", choices=[kind.value for kind in EstimatorKind], default="boosted_trees")
        parser.add_argument(
            "--train-start",
            type=_day,
            metavar="YYYY-MM-DD",
            help="first training day, UTC (default: the latest for which all days lie before the newest label)",
        )
        delay_help = "until labels are known"
        parser.add_argument("--train-days", type=_number(1, _MOST_DAYS), default=7, metavar="DAYS")
        parser.add_argument("--delay-days", type=_number(0, _MOST_DAYS), default=7, metavar="DAYS", help=delay_help)
        parser.add_argument("--test-days", type=_number(1, _MOST_DAYS), default=7, metavar="DAYS")
        parser.add_argument("--features", choices=sorted(_FEATURES), default="all", help="baseline: the Handbook's 15")
        parser.add_argument("--seed", type=_number(0, 2**32 - 1), default=0)
        parser.add_argument(
            "--cost-ratio",
            type=_ratio,
            metavar="N",
            help="decline where a missed fraud costs as much as N false declines (default: by precision, 80 %%)",
        )
        parser.add_argument("--name", type=_name, default="fraud", help="of the model")
        parser.add_argument("--no-activate", dest="activate", action="store_false", help="register only")
        parser.add_argument("--activate", dest="activate", action="store_true", default=True, help="(default)")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with one_at_a_time("training"), shown() as progress:
                stages = Stages(progress)
                trained = train(_plan(options), stages=stages)
                with stages.stage("register"):
                    model_version = register(trained)
                refused = _try_to_activate(model_version, progress) if options["activate"] else None
        except MlserveError as error:
            raise CommandError(error.detail) from error
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL refuses: {error}. Is it migrated (`manage.py migrate`)?") from error
        activated = options["activate"] and refused is None
        compared = model_version.comparisons.first()
        report = _report(trained, model_version, stages.seconds, activated=activated)
        report["comparison"] = compared.report if compared is not None else None
        self.stdout.write(json.dumps(report) if options["json"] else _text(report))
        if refused is not None:
            raise CommandError(refused.detail)


def _plan(options: dict[str, Any]) -> TrainingPlan:
    return TrainingPlan(
        model_name=options["name"],
        kind=EstimatorKind(options["estimator"]),
        feature_names=_FEATURES[options["features"]],
        periods=periods_in_ledger(
            train_start=options["train_start"],
            train_days=options["train_days"],
            delay_days=options["delay_days"],
            test_days=options["test_days"],
        ),
        seed=options["seed"],
        cost_ratio=options["cost_ratio"],
    )


def _try_to_activate(model_version: ModelVersion, progress: Progress) -> ActivationRefused | None:
    try:
        promote(model_version, reason="trained", compare=partial(why_not_compared, progress=progress))
    except ActivationRefused as refused:
        return refused
    return None


def _report(
    trained: TrainedModel, model_version: ModelVersion, seconds: dict[str, float], *, activated: bool
) -> dict[str, Any]:
    return {
        "model_name": model_version.name,
        "model_version": model_version.version,
        "estimator": model_version.estimator,
        "activated": activated,
        "digest": model_version.digest,
        **model_version.metrics,
        "thresholds": asdict(trained.thresholds),
        "parity": model_version.parity,
        "training": model_version.training,
        "features": list(trained.plan.feature_names),
        "seconds": seconds,
    }


def _text(report: dict[str, Any]) -> str:
    training, thresholds = report["training"], report["thresholds"]
    compared = report["comparison"]
    return "\n".join(
        (
            f"model           {report['model_name']} {report['model_version']} ({report['estimator']}, "
            f"{len(report['features'])} features), {'active' if report['activated'] else 'not active'}",
            f"trained on      {report['train_rows']} transactions, {report['train_frauds']} frauds, "
            f"{training['train_days']} d from {training['train_start']}",
            f"tested on       {report['test_rows']} transactions, {report['test_frauds']} frauds, "
            f"{training['test_days']} d up to {training['last_day']}",
            f"left out        {report['unlabelled_rows']} transactions of these days that have no label yet",
            f"quality         AUC ROC {report['auc_roc']:.3f}, average precision {report['average_precision']:.3f} "
            f"(95 % interval {report['average_precision_low']:.3f} to {report['average_precision_high']:.3f}), "
            f"card precision@100 {report['card_precision_at_100']:.3f}",
            f"thresholds      review from {thresholds['review_from']:.4f}, decline from "
            f"{thresholds['decline_from']:.4f} (probability of fraud)",
            *held_out_in_words(report),
            f"parity          {report['parity']['summary']}",
            *(compared_in_words(compared) if compared else ()),
            *(f"warning         {warning}" for warning in training["warnings"]),
            f"artifact        SHA-256 {report['digest']}",
            f"time            {sum(report['seconds'].values()):.1f} s",
        )
    )


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no day; write it as 2018-07-25") from None
    if not 1970 <= day.year < 2200:
        raise ArgumentTypeError(f"{day} is not between 1970 and 2200")
    return day


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ArgumentTypeError(f"{text!r} is no model name: 1 to 64 letters, digits, dots, dashes and underscores")
    return text


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no number") from None
    if not _LEAST_RATIO <= value <= _MOST_RATIO:
        raise ArgumentTypeError(f"{text} is not between {_LEAST_RATIO} and {_MOST_RATIO} false declines a missed fraud")
    return value


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is no whole number") from None
        if not lowest <= value <= highest:
            raise ArgumentTypeError(f"{value} is not between {lowest} and {highest}")
        return value

    return number
