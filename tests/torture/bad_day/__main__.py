"""`python -m tests.torture.bad_day --minutes 2 --seed 3`: a day outside pytest, or some of its faults."""

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.bad_day")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], metavar="FAULT", help="may stand several times")
    parser.add_argument("--keep", type=Path, help="a folder for logs and the ledger of attempts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlserve-bad-day-settings-") as folder:
        # Django's settings are read by what is reused; nothing in this process asks a server of theirs.
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlserve.settings.test")
        os.environ.setdefault("MLSERVE_VAR_DIR", folder)
        from tests.torture.bad_day.day import report_as_json, run_day

        def say(line: str) -> None:
            print(line, flush=True)

        report = run_day(
            seconds=arguments.minutes * 60, seed=arguments.seed, say=say, only=arguments.only, keep=arguments.keep
        )
        print("\n".join(report.lines()))
        if arguments.keep is not None:
            (arguments.keep / "report.json").write_text(report_as_json(report))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
