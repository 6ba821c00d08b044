"""`manage.py check_freshness`: tries to break the proof of freshness on servers of its own."""

import sys
from pathlib import Path
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser

from features.checker import rates
from features.checker.ablations import ABLATIONS
from features.checker.cache_servers import NotMended
from features.checker.children import ChildFailed
from features.checker.history import Volume
from features.checker.keyspace import FEWEST, MOST
from features.checker.report import as_json, render
from features.checker.run import Report, Settings, check
from features.checker.schedule import FAULTS
from features.checker.stand import Load
from mlserve.arguments import whole_number
from mlserve.servers.process import EmbeddedServerError
from mlserve.stopping import Stop, StopRequested, stop_on_signals

ALL = "all"


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
            "--faults",
            default="",
            metavar="LIST",
            help="all, none, or names with commas between (default: all; with --ablate those that aim at the guard)",
        )
        parser.add_argument(
            "--ablate",
            choices=[*sorted(ABLATIONS), ALL],
            default="",
            metavar="GUARD",
            help=f"do without a guard of the proof, to see it missed: {', '.join(ABLATIONS)}; with --seeds also {ALL}",
        )
        parser.add_argument(
            "--seeds",
            type=whole_number(1, 1000),
            default=0,
            metavar="N",
            help="that many runs, with --seed and the ones after it, each until its first violation; print how many "
            "found one",
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
        if options["ablate"] == ALL and not options["seeds"]:
            raise CommandError(f"--ablate {ALL} needs --seeds", returncode=2)
        try:
            with stop_on_signals() as stop:  # what it started must not outlive it
                if options["seeds"]:
                    self._measure(options, stop)
                else:
                    self._check(options, stop)
        except StopRequested:
            raise KeyboardInterrupt from None
        except (EmbeddedServerError, NotMended, ChildFailed) as error:
            raise CommandError(str(error)) from error

    def _check(self, options: dict[str, Any], stop: Stop) -> None:
        report = self._play(_settings(options, guard=options["ablate"], seed=options["seed"]), stop)
        self.stdout.write(as_json(report) if options["json"] else render(report))
        if not report.clean:
            raise CommandError(f"seed {report.seed} broke the proof; logs: {report.logs}")

    def _measure(self, options: dict[str, Any], stop: Stop) -> None:
        guards = list(ABLATIONS) if options["ablate"] == ALL else [options["ablate"]]
        seeds = range(options["seed"], options["seed"] + options["seeds"])
        measured: list[rates.Rate] = []
        if not options["json"]:
            self.stdout.write(rates.HEAD)
        for guard in guards:
            settings = _settings(options, guard=guard, seed=0)

            def run(seed: int, settings: Settings = settings) -> Report:
                report = self._play(msgspec.structs.replace(settings, seed=seed, until_found=True), stop)
                what = ", ".join(report.failures or report.verdict.violations) or "nothing found"
                self.stderr.write(f"{settings.ablation or 'whole'}, seed {seed}: {what} after {report.seconds:.0f} s")
                return report

            measured.append(rates.measure(guard, seeds=seeds, faults=settings.faults, run=run))
            if not options["json"]:
                self.stdout.write(rates.line(measured[-1]))
        if options["json"]:
            self.stdout.write(rates.as_json(measured))
        broken = [rate.guard or "the whole proof" for rate in measured if not rate.as_promised]
        if broken:
            raise CommandError(f"not as promised: {', '.join(broken)}")

    def _play(self, settings: Settings, stop: Stop) -> Report:
        try:
            return check(settings, tell=self._tell, stop=stop)
        finally:
            self._end_progress()

    def _tell(self, doing: str, volume: Volume) -> None:
        if sys.stderr.isatty():
            line = f"{doing:20} {volume.reads:>10,} reads {volume.write_events:>9,} events of writes"
            self.stderr.write(f"\r{line}", ending="")

    def _end_progress(self) -> None:
        if sys.stderr.isatty():
            self.stderr.write("")


def _settings(options: dict[str, Any], *, guard: str, seed: int) -> Settings:
    aimed = ABLATIONS[guard].faults if guard else tuple(FAULTS)
    return Settings(
        seconds=options["seconds"],
        seed=seed,
        faults=_faults(options["faults"]) if options["faults"] else aimed,
        ablation=guard,
        keys=options["keys"],
        load=Load(readers=options["readers"], writers=options["writers"]),
        keep_logs=options["keep_logs"],
    )


def _faults(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return tuple(FAULTS) if text == "all" else ()
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise CommandError(f"--faults: no {', '.join(unknown)}; known: {', '.join(FAULTS)}", returncode=2)
    return names
