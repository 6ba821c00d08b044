"""`manage.py check_freshness`: tries to break the proof of freshness on servers of its own."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from features.checker.ablations import ABLATIONS
from features.checker.cache_servers import NotMended
from features.checker.children import ChildFailed
from features.checker.history import Volume
from features.checker.keyspace import FEWEST, MOST
from features.checker.report import as_json, render
from features.checker.run import Settings, check
from features.checker.schedule import FAULTS
from features.checker.stand import Load
from mlserve.arguments import whole_number
from mlserve.servers.process import EmbeddedServerError
from mlserve.stopping import StopRequested, stop_on_signals


class Command(BaseCommand):
    help = (
        "Writes and reads on servers of its own, breaks servers, links and processes meanwhile, and judges what was "
        "read. Exit code 1 if a read broke a promise."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--seconds",
            type=whole_number(5, 86_400),
            default=60,
            metavar="N",
            help="of load, or until each fault has struck (default: 60)",
        )
        parser.add_argument(
            "--seed", type=whole_number(0, 2**31), default=1, metavar="S", help="of the faults' schedule (default: 1)"
        )
        parser.add_argument(
            "--faults", default="all", metavar="LIST", help="all, none, or names with commas between (default: all)"
        )
        parser.add_argument(
            "--ablate",
            choices=sorted(ABLATIONS),
            default="",
            metavar="GUARD",
            help=f"do without a guard of the proof, to see it missed: {', '.join(ABLATIONS)}",
        )
        load = Load()
        parser.add_argument(
            "--readers",
            type=whole_number(1, 32),
            default=load.readers,
            metavar="N",
            help=f"processes that serve (default: {load.readers})",
        )
        parser.add_argument(
            "--writers",
            type=whole_number(1, 32),
            default=load.writers,
            metavar="N",
            help=f"processes that write (default: {load.writers})",
        )
        parser.add_argument(
            "--keys", type=whole_number(FEWEST, MOST), default=40, metavar="N", help="that are written (default: 40)"
        )
        parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="keep the histories, also of a clean run")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        settings = Settings(
            seconds=options["seconds"],
            seed=options["seed"],
            faults=_faults(options["faults"]),
            ablation=options["ablate"],
            keys=options["keys"],
            load=Load(readers=options["readers"], writers=options["writers"]),
            keep_logs=options["keep_logs"],
        )
        try:
            with stop_on_signals() as stop:  # what it started must not outlive it
                report = check(settings, tell=self._tell, stop=stop)
        except StopRequested:
            raise KeyboardInterrupt from None
        except (EmbeddedServerError, NotMended, ChildFailed) as error:
            raise CommandError(str(error)) from error
        finally:
            self._end_progress()
        self.stdout.write(as_json(report) if options["json"] else render(report))
        if not report.clean:
            raise CommandError(f"seed {report.seed} broke the proof; logs: {report.logs}")

    def _tell(self, doing: str, volume: Volume) -> None:
        if sys.stderr.isatty():
            line = f"{doing:20} {volume.reads:>10,} reads {volume.write_events:>9,} events of writes"
            self.stderr.write(f"\r{line}", ending="")

    def _end_progress(self) -> None:
        if sys.stderr.isatty():
            self.stderr.write("")


def _faults(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return tuple(FAULTS) if text == "all" else ()
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise CommandError(f"--faults: no {', '.join(unknown)}; known: {', '.join(FAULTS)}", returncode=2)
    return names
