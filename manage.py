#!/usr/bin/env python
"""The command line. Commands that need servers start the embedded ones where no URL is configured."""

import sys

from mlserve import embedded


def main() -> None:
    embedded.prepare_command(sys.argv)
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
