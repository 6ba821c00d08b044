"""`manage.py training_serving_skew`: whether decisions were given on the values that training has."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from features.progress import shown, silent
from mlserve.arguments import whole_number
from predictions.skew import SAMPLE, SPAN, SkewReport, check_skew, differing_features

_MAX_SAMPLE = 100_000
_MAX_HOURS = 24 * 31


class Command(BaseCommand):
    help = (
        "Takes a sample of the journalled decisions, computes their features anew as training does, and counts the "
        "values that differ without a known reason. Exit code 1 if there are any."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--sample",
            type=whole_number(1, _MAX_SAMPLE),
            default=SAMPLE,
            metavar="N",
            help=f"at most so many decisions, drawn at random (default: {SAMPLE:,})",
        )
        hours = int(SPAN.total_seconds() // 3600)
        parser.add_argument(
            "--hours",
            type=whole_number(1, _MAX_HOURS),
            default=hours,
            metavar="N",
            help=f"of the last so many hours, 1 to {_MAX_HOURS} (default: {hours})",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        now, span = datetime.now(UTC), timedelta(hours=options["hours"])
        try:
            with shown() as progress:
                report = check_skew(
                    now=now,
                    sample=options["sample"],
                    span=span,
                    progress=silent if options["verbosity"] == 0 else progress,
                )
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL refuses: {error}. Is it migrated (`manage.py migrate`)?") from error
        if options["json"]:
            self.stdout.write(msgspec.json.encode(report).decode())
        else:
            self._show(report)
        if report.differing:
            names = ", ".join(differing_features(report.features))
            raise CommandError(f"{report.differing:,} served values are not those of training: {names}")

    def _show(self, report: SkewReport) -> None:
        self.stdout.write(f"{report.sampled:,} decisions from {report.since:%Y-%m-%d %H:%M} UTC on were drawn")
        for why, number in sorted(report.skipped.items()):
            self.stdout.write(f"  not compared, {_in_words(why)}: {number:,}")
        if not report.features:
            return
        self.stdout.write(f"{'feature':<26}{'compared':>10}{'differing':>11}  explained")
        for name, of in report.features.items():
            explained = ", ".join(f"{number:,} {_in_words(why)}" for why, number in sorted(of.explained.items()))
            self.stdout.write(f"{name:<26}{of.compared:>10,}{of.differing:>11,}  {explained}".rstrip())
        for one in report.examples:
            as_of = f" as of {one.as_of:%Y-%m-%d %H:%M:%S} UTC" if one.as_of else ""
            self.stdout.write(
                f"{one.transaction_id}: {one.feature} was {one.served:.9g} ({one.tier}{as_of}), is {one.expected:.9g}"
            )


def _in_words(reason: str) -> str:
    return reason.replace("_", " ")
