import json
from datetime import UTC
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from features.definitions import BUILT_GROUPS
from features.progress import shown, silent
from features.refresh import build_alone
from mlserve.errors import MlserveError


class Command(BaseCommand):
    help = "Builds feature groups from the ledger into Postgres. Safe while transactions are being scored."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--as-of",
            metavar="MOMENT",
            help="refused, but for `now`: what is built serves; `export_vectors` gives what was known at a past moment",
        )
        parser.add_argument(
            "--groups",
            metavar="NAME,...",
            default=",".join(BUILT_GROUPS),
            help=f"which groups; one embedding brings the other; default: all ({', '.join(BUILT_GROUPS)})",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        if options["as_of"] is not None:
            _refuse_another_moment(options["as_of"])
        groups = [name.strip() for name in options["groups"].split(",")]
        unknown = [name for name in groups if name not in BUILT_GROUPS]
        if unknown:
            raise CommandError(
                f"--groups: no group to build {', '.join(unknown)}; known are {', '.join(BUILT_GROUPS)}", returncode=2
            )
        try:
            with shown() as progress:
                report = build_alone(groups, now=now, progress=silent if options["verbosity"] == 0 else progress)
        except MlserveError as error:
            raise CommandError(error.detail) from error
        except DatabaseError as error:
            raise CommandError(f"Postgres did not take the features: {error}") from error
        if options["json"]:
            answer = {
                "as_of": report.as_of.astimezone(UTC).isoformat(),
                "rows": report.rows,
                "invalidated": report.invalidated,
                "pending": report.pending,
                "seconds": round(report.seconds, 3),
            }
            self.stdout.write(json.dumps(answer))
            return
        for group, rows in report.rows.items():
            self.stdout.write(f"{group:20} {rows:>9,} rows, {report.invalidated[group]:,} changed")
        if report.pending:
            self.stderr.write(
                f"L2 does not answer: {report.pending:,} copies of what changed stay there until their limits."
            )
        if not any(report.rows.values()):
            self.stdout.write(f"The ledger has no transactions up to {now:%Y-%m-%d %H:%M:%S} UTC.")
        self.stdout.write(f"as of {now:%Y-%m-%d %H:%M:%S} UTC, built in {report.seconds:.1f} s")


def _refuse_another_moment(text: str) -> None:
    """What is built serves at once, under the ages of now, so it must be what the ledger says now."""
    if text == "now":
        return
    raise CommandError(
        f"--as-of {text!r}: what is built is what serves, so it is always as of now, and nothing was built. What was "
        "known at a past moment, transaction by transaction: `manage.py export_vectors`",
        returncode=2,
    )
