"""`manage.py inspect`: whether copies in the cache are what Postgres says, looked at from outside."""

import json
import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from features.inspection.inspector import Inspector, Tally
from features.inspection.results import Finding
from features.inspection.wiring import make_inspector
from mlserve.arguments import whole_number

_LONGEST_S = 7 * 86_400


class Command(BaseCommand):
    help = (
        "Compares copies in L2 and in every process with Postgres, 1 s, 10 s and 300 s after each write. Deletes those "
        "that are wrong, and then has Postgres alone answer for their group. Several may run at once."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--seconds",
            type=whole_number(0, _LONGEST_S),
            default=10,
            metavar="N",
            help="look for so long; 0: until it is stopped (default: 10)",
        )
        parser.add_argument("--json", action="store_true", help="in the end, print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        inspector = make_inspector()
        _run(inspector, seconds=options["seconds"] or float("inf"))
        tally = inspector.tally
        if options["json"]:
            self.stdout.write(json.dumps(_as_json(tally)))
        else:
            self._print(tally)
        if tally.trouble:
            raise CommandError(f"the last look was not concluded; the next run makes it again. {tally.trouble}")
        if tally.inconsistent:
            raise CommandError(f"{tally.inconsistent:,} writes were missing or wrong in some copy")

    def _print(self, tally: Tally) -> None:
        if not tally.counts.of:
            self.stdout.write("nothing to look at: no write of a feature group became 1 s, 10 s or 300 s old meanwhile")
        for (horizon_s, tier), count in sorted(tally.counts.of.items()):
            mean_s = count.age_sum_s / count.checked if count.checked else 0.0
            causes = ", ".join(f"{number:,} {cause}" for cause, number in sorted(count.causes.items())) or "none wrong"
            self.stdout.write(
                f"{horizon_s:>4} s  {tier:3}  {count.checked:>9,} checked, {mean_s:,.1f} s old on average, {causes}"
            )
        for finding in tally.findings:
            self.stdout.write(
                f"{finding.cause}: {finding.key.group} of {finding.key.id} in {finding.tier} {finding.place}".rstrip()
                + f", version {finding.held} where {finding.written} was written"
            )
        for group in tally.switched_off:
            self.stdout.write(f"{group}: L1 and L2 are off until its TTL policy allows them again")
        for why in sorted(set(tally.skipped)):
            self.stdout.write(f"lines of the journal were passed over: {why}")


def _run(inspector: Inspector, *, seconds: float) -> None:
    """In a thread, so that a signal is heard while a server hangs."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    finished = threading.Event()

    def run() -> None:
        try:
            inspector.run(seconds, stopped=stopped.is_set)
        finally:
            finished.set()

    thread = threading.Thread(target=run, name="inspector", daemon=True)
    thread.start()
    while not finished.wait(0.1) and not stopped.is_set():
        pass
    for number, handler in before.items():
        signal.signal(number, handler)
    thread.join(5.0)


def _as_json(tally: Tally) -> dict[str, Any]:
    return {
        "looks": tally.looks,
        "races": tally.races,
        "checks": [
            {
                "horizon_s": horizon_s,
                "tier": tier,
                "checked": count.checked,
                "mean_age_s": round(count.age_sum_s / count.checked, 3) if count.checked else None,
                "inconsistent": {str(cause): number for cause, number in sorted(count.causes.items())},
            }
            for (horizon_s, tier), count in sorted(tally.counts.of.items())
        ],
        "findings": [_finding(finding) for finding in tally.findings],
        "repaired": tally.repaired,
        "switched_off": tally.switched_off,
        "skipped": tally.skipped,
        "processes": sorted(tally.processes),
        "lag_s": round(tally.lag_s, 3),
        "trouble": tally.trouble,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "group": finding.key.group,
        "entity_id": finding.key.id,
        "tier": str(finding.tier),
        "place": finding.place,
        "horizon_s": finding.horizon_s,
        "age_s": round(finding.age_s, 3),
        "cause": str(finding.cause),
        "held_version": finding.held,
        "written_version": finding.written,
    }
