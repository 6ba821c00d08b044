"""What a process of a run can be: each role is called in a fork of its own, with the run's file and its arguments."""

from collections.abc import Callable

from django.core.management import call_command

from features.checker.plants import plant_old_records, plant_wrong_bytes
from features.checker.readers import read_for_as_long_as_it_runs
from features.checker.run_file import RunFile
from features.checker.writers import hold_a_transaction_open, populate, write_for_as_long_as_it_runs


def _migrate(run: RunFile) -> None:
    call_command("migrate", verbosity=0)


def _relay(run: RunFile) -> None:
    call_command("relay")


ROLES: dict[str, Callable[..., None]] = {
    "migrate": _migrate,
    "populate": populate,
    "relay": _relay,
    "reader": read_for_as_long_as_it_runs,
    "writer": write_for_as_long_as_it_runs,
    "holder": hold_a_transaction_open,
    "plant_wrong_bytes": plant_wrong_bytes,
    "plant_old_records": plant_old_records,
}
