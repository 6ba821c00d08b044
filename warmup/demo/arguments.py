"""What `manage.py demo` takes, looked at before any server starts.

Therefore nothing here may load Django's settings: they read the servers' addresses, which are not known yet.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from features.transactions import sizes
from features.transactions.layouts import LayoutError
from features.transactions.readers import PathError, open_transactions
from features.transactions.rows import FileError
from mlserve.api.key_format import KEY_RULE, is_possible_key
from mlserve.arguments import whole_number

USAGE = 2
MOST_PER_SECOND = 1000


class DemoArguments(BaseCommand):
    """The options of the command, without the command."""

    help = (
        "Runs all of it on this machine: servers, migrations, data, features, model, web, Celery and live traffic. "
        "Ctrl-C stops it. A second run finds everything there and starts in seconds."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        port, days = whole_number(0, 65_535), whole_number(21, sizes.MOST_DAYS)
        parser.add_argument("--port", type=port, default=8000, help="of 127.0.0.1; 0: any free one (default: 8000)")
        parser.add_argument("--api-key", default="", help="to be valid (default: MLSERVE_API_KEY, or a random one)")
        parser.add_argument("--data", type=Path, metavar="FILE", help="CSV or Parquet, instead of simulated data")
        parser.add_argument("--customers", type=sizes.customers, default=2_000, help="to simulate (default: 2,000)")
        parser.add_argument("--merchants", type=sizes.merchants, default=1_000, help="to simulate (default: 1,000)")
        parser.add_argument("--days", type=days, default=60, help="to simulate, at least 21 (default: 60)")
        parser.add_argument("--rate", type=float, default=5.0, help="live transactions a second (default: 5)")
        parser.add_argument("--no-traffic", action="store_true", help="no live traffic")
        parser.add_argument("--duration", type=float, metavar="S", help="stop S seconds after the first score")
        parser.add_argument("--json", action="store_true", help="after the first score, one JSON object on stdout")


def refuse_wrong_arguments(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Looks at a command line `manage.py demo ...`. Ends the process with exit code 2 and a message if it is wrong."""
    command = DemoArguments()
    command._called_from_command_line = True  # type: ignore[attr-defined]  # a usage error then ends the process
    parser = command.create_parser(argv[0], argv[1])
    options = vars(parser.parse_args(argv[2:]))
    try:
        check_values(options, api_key=options["api_key"] or environment.get("MLSERVE_API_KEY", ""))
    except CommandError as error:
        parser.exit(USAGE, f"CommandError: {error}\n")


def check_values(options: Mapping[str, Any], *, api_key: str) -> None:
    """Raises CommandError, with the exit code of a usage error, for what the parser alone does not see."""
    if not 0 < options["rate"] <= MOST_PER_SECOND:
        what = f"must lie between 0 and {MOST_PER_SECOND:,} a second"
        raise CommandError(f"--rate {options['rate']:g}: {what}", returncode=USAGE)
    if options["duration"] is not None and not options["duration"] >= 0:
        raise CommandError(f"--duration {options['duration']:g}: must be 0 seconds or more", returncode=USAGE)
    if api_key and not is_possible_key(api_key):
        raise CommandError(f"--api-key or MLSERVE_API_KEY: {KEY_RULE}", returncode=USAGE)
    if options["data"] is not None:
        try:
            open_transactions(options["data"], layout=None, mapping={})
        except (PathError, LayoutError, FileError) as error:
            raise CommandError(f"--data: {error}", returncode=USAGE) from error
