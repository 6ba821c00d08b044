#!/usr/bin/env python
"""The command line. Commands that need servers start the embedded ones where no URL is configured."""

import os
import signal
import sys

from mlserve import embedded


def main() -> None:
    is_demo = sys.argv[1:2] == ["demo"]
    try:
        if is_demo:
            _prepare_demo()
        embedded.prepare_command(sys.argv)
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        # The demo stops what it started; servers that another command started are there for the next one too.
        raise SystemExit(embedded.interrupted(stop_servers=is_demo)) from None


def _prepare_demo() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # until the command itself listens to them
    from warmup.demo.arguments import refuse_wrong_arguments

    # Settings, which read the environment otherwise, must not be loaded before the servers' addresses are known.
    refuse_wrong_arguments(sys.argv, os.environ)  # noqa: TID251


if __name__ == "__main__":
    main()
