"""`manage.py bench`: measures the numbers that the design promises."""

import json
import math
from importlib import import_module
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console


class Command(BaseCommand):
    help = (
        "Measures the numbers that the design promises, each against another way to do the same, by turns in one run. "
        "Exit code 1 if a target is missed; where the rounds do not agree there is no verdict."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks (default: all)")
        parser.add_argument(
            "--seconds", type=float, metavar="S", help="for each line of the table, without preparation (default: 10)"
        )
        parser.add_argument("--list", action="store_true", help="only say which benchmarks there are")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        suite = _suite()
        known: dict[str, str] = suite.listed()
        if options["list"]:
            self._list(known, as_json=options["json"])
            return
        names = options["names"] or list(known)
        seconds = suite.SECONDS if options["seconds"] is None else options["seconds"]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise CommandError(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", returncode=2)
        if not (math.isfinite(seconds) and seconds > 0):
            raise CommandError(f"--seconds {seconds:g}: needed is a number above 0", returncode=2)
        failure = import_module("benchmarks.contest").BenchmarkFailed
        try:
            with suite.progress() as progress:
                results = suite.measure(dict.fromkeys(names), seconds=seconds, progress=progress)
        except failure as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt as error:
            raise CommandError("interrupted; what it made is gone") from error
        if options["json"]:
            self.stdout.write(json.dumps(suite.as_json(results)))
        else:
            suite.show(results, Console(file=cast(IO[str], self.stdout), highlight=False, width=_WIDTH))
        missed = suite.missed(results)
        if missed:
            raise CommandError(f"target missed: {', '.join(missed)}")

    def _list(self, known: dict[str, str], *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"benchmarks": [{"name": name, "about": known[name]} for name in known]}))
            return
        for name, about in known.items():
            self.stdout.write(f"{name:10} {about}")


_WIDTH = 140


def _suite() -> Any:
    """By name: the platform knows no app by import, and the benchmarks stand above all of them."""
    try:
        return import_module("benchmarks.suite")
    except ModuleNotFoundError as error:
        if error.name != "benchmarks":
            raise
        raise CommandError("the benchmarks are part of the checkout, not of the image: run this there") from error
