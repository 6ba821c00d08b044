"""`manage.py evaluate`: what became of a model version's decisions, by day."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from mlserve.errors import MlserveError
from predictions.evaluation import DAYS, MOST_DAYS, DayQuality, Evaluation, evaluate_model
from predictions.models import Activation, ModelVersion
from predictions.registry.active import NoActiveModel
from predictions.registry.register import find_model_version

_NAME = "fraud"


class Command(BaseCommand):
    help = (
        "Precision, recall and AUC of the active model's decisions by day, as far as labels have been reported "
        "(POST /v1/labels) or imported."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--days", type=int, default=DAYS, help=f"up to today, 1 to {MOST_DAYS} (default: {DAYS})")
        parser.add_argument("--model-version", type=int, metavar="N", help="another one than the active model's")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 1 <= options["days"] <= MOST_DAYS:
            raise CommandError(f"--days {options['days']}: needed is a number from 1 to {MOST_DAYS}", returncode=2)
        try:
            version = _wanted(options["model_version"])
            evaluation = evaluate_model(version, now=datetime.now(UTC), days=options["days"])
        except MlserveError as error:
            raise CommandError(error.detail) from error
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL refuses: {error}. Is it migrated (`manage.py migrate`)?") from error
        if options["json"]:
            self.stdout.write(msgspec.json.encode(evaluation).decode())
        else:
            self._show(evaluation)

    def _show(self, evaluation: Evaluation) -> None:
        model, total = evaluation.model, evaluation.total
        self.stdout.write(f"{model.name} {model.version}, the last {evaluation.days} days")
        if not total.labelled:
            what = f"{total.decisions} decisions, none of them labelled" if total.decisions else "no decisions"
            self.stdout.write(f"{what}; labels come in by POST /v1/labels")
            return
        self.stdout.write(
            f"{'day':<11}{'decisions':>10}{'labelled':>10}{'fraud':>7}{'precision':>11}{'recall':>8}{'AUC':>8}"
        )
        for one in (*evaluation.by_day, total):
            self.stdout.write(_line(one))
        if not total.mature:
            self.stdout.write(f"* labels still to come: younger than {evaluation.label_delay_days} days")


def _wanted(number: int | None) -> ModelVersion:
    if number is not None:
        return find_model_version(name=_NAME, version=number)
    newest = Activation.objects.select_related("model_version").first()
    if newest is None:
        raise NoActiveModel
    return newest.model_version


def _line(one: DayQuality) -> str:
    numbers = [f"{value:.3f}" if value is not None else "-" for value in (one.precision, one.recall, one.auc_roc)]
    day = f"{one.day:%Y-%m-%d}" if one.day else "all"
    return (
        f"{day:<11}{one.decisions:>10}{one.labelled:>10}{one.frauds:>7}"
        f"{numbers[0]:>11}{numbers[1]:>8}{numbers[2]:>8}{'' if one.mature else ' *'}"
    )
