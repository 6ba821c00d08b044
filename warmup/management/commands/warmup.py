"""`manage.py warmup`: fills L2 ahead of the requests."""

import json
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from features.progress import shown
from mlserve.errors import MlserveError
from mlserve.postgres.one_at_a_time import one_at_a_time
from warmup import run
from warmup.run import WarmReport


class Command(BaseCommand):
    help = (
        "Puts the features of the most active customers and merchants, or of those hot by live traffic, into L2. "
        "What is there and stays fresh is left alone."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--most-active",
            type=int,
            metavar="N",
            default=run.MOST_ACTIVE_LIMIT,
            help=f"of both kinds, by the recent ledger (default: {run.MOST_ACTIVE_LIMIT:,})",
        )
        which.add_argument(
            "--hot",
            type=int,
            metavar="N",
            nargs="?",
            const=run.HOT_LIMIT,
            help=f"the hottest of both kinds together, by live traffic ({run.HOT_LIMIT:,} if no number is given)",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        limit = options["most_active"] if options["hot"] is None else options["hot"]
        work = run.warm_most_active if options["hot"] is None else run.refresh_hot_keys
        try:
            with one_at_a_time("warm-up"), shown() as progress:
                report = work(limit=limit, now=timezone.now(), progress=progress)
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from error
        except MlserveError as error:
            raise CommandError(error.detail) from error
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL does not answer or refuses: {error}") from error
        self.stdout.write(json.dumps(msgspec.to_builtins(report)) if options["json"] else _text(report))
        if report.stopped:
            raise CommandError(f"ended early: {report.stopped}")


def _text(report: WarmReport) -> str:
    return (
        f"{report.entities:,} entities, {report.keys_asked:,} keys: {report.keys_fresh:,} were fresh, "
        f"{report.keys_put:,} put into L2, in {report.seconds:.1f} s"
    )
