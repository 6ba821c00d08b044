"""`manage.py bench`: measures the numbers that the design promises."""

import json
import math
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console

from mlserve.arguments import whole_number


class Command(BaseCommand):
    help = (
        "Measures the numbers that the design promises, each against another way to do the same, by turns in one run. "
        "Exit code 1 if a target is missed; where the rounds do not agree there is no verdict."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks (default: all but peers)")
        parser.add_argument(
            "--seconds", type=float, metavar="S", help="for each line of the table, without preparation (default: 10)"
        )
        parser.add_argument(
            "--rounds",
            type=whole_number(1, 1000),
            metavar="N",
            help="turns of both sides (default: what each benchmark needs for a verdict); few are for a quick look",
        )
        parser.add_argument("--list", action="store_true", help="only say which benchmarks there are")
        parser.add_argument(
            "--trace", metavar="FILE", help="with l1: replay this file of one key per line and compare with LRU"
        )
        parser.add_argument("--capacity", type=int, metavar="N", help="with --trace: entries that fit (at least 1)")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        suite = _suite()
        known: dict[str, str] = suite.listed()
        if options["list"]:
            self._list(known, as_json=options["json"])
            return
        if options["trace"] is not None or options["capacity"] is not None:
            self._replay(options)
            return
        names = options["names"] or suite.by_default()
        seconds = suite.SECONDS if options["seconds"] is None else options["seconds"]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise CommandError(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", returncode=2)
        if not (math.isfinite(seconds) and seconds > 0):
            raise CommandError(f"--seconds {seconds:g}: needed is a number above 0", returncode=2)
        failure = import_module("benchmarks.contest").BenchmarkFailed
        try:
            with suite.progress() as progress:
                results = suite.measure(
                    dict.fromkeys(names), seconds=seconds, rounds=options["rounds"], progress=progress
                )
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

    def _replay(self, options: dict[str, Any]) -> None:
        trace = import_module("benchmarks.trace")
        refusal = _refused_replay(options, most_capacity=trace.MOST_CAPACITY)
        if refusal is not None:
            raise CommandError(refusal, returncode=2)
        try:
            result = trace.replay(Path(options["trace"]), capacity=options["capacity"])
        except trace.TraceError as error:
            raise CommandError(f"--trace {error}", returncode=2) from error
        except KeyboardInterrupt as error:
            raise CommandError("interrupted") from error
        self.stdout.write(json.dumps(trace.as_json(result)) if options["json"] else trace.as_text(result))

    def _list(self, known: dict[str, str], *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"benchmarks": [{"name": name, "about": known[name]} for name in known]}))
            return
        for name, about in known.items():
            self.stdout.write(f"{name:10} {about}")


_WIDTH = 140


def _refused_replay(options: dict[str, Any], *, most_capacity: int) -> str | None:
    """What is wrong with the arguments of a replay, None if nothing is."""
    capacity = options["capacity"]
    if options["trace"] is None:
        return "--capacity is for --trace FILE"
    if list(dict.fromkeys(options["names"])) != ["l1"]:
        return f"--trace is for l1 alone (bench l1 --trace FILE), not for {', '.join(options['names']) or 'all'}"
    if options["seconds"] is not None:
        return "--seconds means nothing with --trace: the file is read once"
    if capacity is None:
        return "--trace needs --capacity N, the number of entries that fit"
    if not 1 <= capacity <= most_capacity:
        return f"--capacity {capacity}: needed is a number from 1 to {most_capacity}"
    return None


def _suite() -> Any:
    """By name: the platform knows no app by import, and the benchmarks stand above all of them."""
    try:
        return import_module("benchmarks.suite")
    except ModuleNotFoundError as error:
        if error.name != "benchmarks":
            raise
        raise CommandError("the benchmarks are part of the checkout, not of the image: run this there") from error
