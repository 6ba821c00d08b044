import json
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from features.definitions import BUILT_GROUPS
from features.progress import shown, silent
from features.refresh import build


class Command(BaseCommand):
    help = "Builds feature groups from the ledger into Postgres. Safe while transactions are being scored."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--as-of",
            metavar="MOMENT",
            help="what was known at this date or time (ISO 8601, UTC unless it says otherwise); default: now",
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
        as_of = _moment(options["as_of"]) if options["as_of"] else now
        if as_of > now:
            raise CommandError(
                f"--as-of: {as_of:%Y-%m-%d %H:%M:%S} UTC is in the future, whose windows would be empty; it is "
                f"{now:%Y-%m-%d %H:%M:%S} UTC now",
                returncode=2,
            )
        groups = [name.strip() for name in options["groups"].split(",")]
        unknown = [name for name in groups if name not in BUILT_GROUPS]
        if unknown:
            raise CommandError(
                f"--groups: no group to build {', '.join(unknown)}; known are {', '.join(BUILT_GROUPS)}", returncode=2
            )
        try:
            with shown() as progress:
                report = build(groups, as_of=as_of, now=now, progress=silent if options["verbosity"] == 0 else progress)
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
            self.stdout.write(f"The ledger has no transactions up to {as_of:%Y-%m-%d %H:%M:%S} UTC.")
        self.stdout.write(f"as of {as_of:%Y-%m-%d %H:%M:%S} UTC, built in {report.seconds:.1f} s")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"--as-of: {text!r} is no date or time; write 2018-08-01 or 2018-08-01T12:00:00", returncode=2
        ) from error
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
