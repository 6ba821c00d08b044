"""`python -m benchmarks.migrated`: makes the tables in the environment's empty database. A child of benchmarks."""

import io

import django
from django.core.management import call_command

from benchmarks.child import say


def main() -> None:
    django.setup()
    call_command("migrate", interactive=False, verbosity=0, stdout=io.StringIO())
    say("migrated")


if __name__ == "__main__":
    main()
