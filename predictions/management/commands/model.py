"""Model versions by hand: `manage.py model list`, `model compare 3`, `model activate 3`, `model rollback`."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from mlserve.errors import MlserveError
from predictions.models import Activation, ModelVersion
from predictions.registry.comparison import compare_with_serving, why_not_compared
from predictions.registry.gate import QualityRefused, objections_to, promote
from predictions.registry.register import find_model_version, roll_back
from predictions.registry.report import compared_in_words

_DEFAULT_NAME = "fraud"


class Command(BaseCommand):
    help = (
        "Lists the model versions, compares one with what serves, or lets another one serve: every process obeys "
        "within a second. What is worse than what serves, has seen too few frauds or flags an implausible share is "
        "refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["list", "compare", "activate", "rollback"])
        parser.add_argument("version", type=int, nargs="?", help="with `activate`, `compare`: the number")
        parser.add_argument("--name", help=f"of the model (default: {_DEFAULT_NAME}; with `list`: all)")
        parser.add_argument("--reason", default="", help="kept with the activation")
        parser.add_argument(
            "--force", action="store_true", help="with `activate`: whatever its quality; needs --reason"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        action, version, as_json = options["action"], options["version"], options["json"]
        if (action in ("activate", "compare")) != (version is not None):
            raise CommandError(
                f"`{action}` takes the number of a model version; only `activate` and `compare` do"
                if version is None
                else f"`{action}` takes no number of a model version; only `activate` and `compare` do",
                returncode=2,
            )
        if options["force"] and (action != "activate" or not options["reason"].strip()):
            raise CommandError("--force goes with `activate`, and needs a --reason for the history", returncode=2)
        if action == "rollback" and options["name"] is not None:
            raise CommandError("`rollback` undoes the last activation, of whatever model: no --name", returncode=2)
        try:
            if action == "list":
                self._list(name=options["name"], as_json=as_json)
            elif action == "compare":
                self._compare(find_model_version(name=options["name"] or _DEFAULT_NAME, version=version), as_json)
            elif action == "activate":
                model_version = find_model_version(name=options["name"] or _DEFAULT_NAME, version=version)
                activation = promote(
                    model_version, reason=options["reason"], force=options["force"], compare=why_not_compared
                )
                self._tell(activation, as_json=as_json)
            else:
                self._tell(roll_back(reason=options["reason"] or "rollback"), as_json=as_json)
        except MlserveError as error:
            raise CommandError(error.detail) from error
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL refuses: {error}. Is it migrated (`manage.py migrate`)?") from error

    def _list(self, *, name: str | None, as_json: bool) -> None:
        newest = Activation.objects.first()
        active_id = newest.model_version_id if newest else None
        versions = ModelVersion.objects.all() if name is None else ModelVersion.objects.filter(name=name)
        listed = [_as_dict(one, active=one.pk == active_id) for one in versions]
        if name is not None and not listed:
            known = sorted(set(ModelVersion.objects.order_by().values_list("name", flat=True)))
            raise CommandError(f"no model is named {name!r}. Known: {', '.join(known) or 'none'}")
        if as_json:
            self.stdout.write(json.dumps({"models": listed}))
            return
        for one in listed:
            auc, precision = (_figure(one["metrics"].get(name)) for name in ("auc_roc", "average_precision"))
            self.stdout.write(
                f"{'*' if one['active'] else ' '} {one['name']} {one['version']:<4} {one['estimator']:<20} "
                f"AUC {auc}  AP {precision}  "
                f"parity {'passed' if one['parity'].get('passed') is True else 'FAILED'}  {one['created_at']}  "
                f"{one['digest'][:12]}"
            )
        if not listed:
            self.stdout.write("no model version yet: run `manage.py train`")

    def _compare(self, candidate: ModelVersion, as_json: bool) -> None:
        """Ends with 1 where the version should not serve."""
        comparison = compare_with_serving(candidate)
        objections = objections_to(candidate)
        if as_json:
            report = comparison.report if comparison is not None else None
            self.stdout.write(json.dumps({"comparison": report, "objections": objections}))
        elif comparison is None:
            self.stdout.write(f"model {candidate}: nothing else serves that it could be compared with")
        else:
            self.stdout.write("\n".join(compared_in_words(comparison.report)))
        if objections:
            raise QualityRefused(candidate, objections)

    def _tell(self, activation: Activation, *, as_json: bool) -> None:
        model_version = activation.model_version
        if as_json:
            report = {
                "activation": activation.pk,
                "name": model_version.name,
                "version": model_version.version,
                "reason": activation.reason,
                "overruled": activation.overruled,
            }
            self.stdout.write(json.dumps(report))
            return
        self.stdout.write(f"model {model_version} serves (activation {activation.pk})")
        if activation.overruled:
            self.stdout.write(f"overruled: {activation.overruled}")


def _as_dict(model_version: ModelVersion, *, active: bool) -> dict[str, Any]:
    return {
        "name": model_version.name,
        "version": model_version.version,
        "active": active,
        "estimator": model_version.estimator,
        "features": model_version.feature_names,
        "thresholds": {"review_from": model_version.review_from, "decline_from": model_version.decline_from},
        "on_missing_source": model_version.on_missing_source,
        "digest": model_version.digest,
        "metrics": model_version.metrics,
        "training": model_version.training,
        "parity": model_version.parity,
        "created_at": model_version.created_at.isoformat(timespec="seconds"),
    }


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float | int) else "-"
