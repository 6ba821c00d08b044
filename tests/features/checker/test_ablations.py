"""Guards can be taken away as long as they stand in the code, and only in processes made for that."""

import subprocess
import sys

import pytest

from features.checker import ablations
from features.checker.ablations import ABLATIONS, PLANTS, GuardNotFound
from features.checker.roles import ROLES
from mlserve.cache.tiers.batches import Batches
from mlserve.settings.base import BASE_DIR

_REMOVE_ALL = """
import django
django.setup()
from features.checker.ablations import ABLATIONS, remove
for name in ABLATIONS:
    remove(name)
    print(name)
"""


def test_every_guard_is_still_there_to_be_taken_away() -> None:
    """Scripts' lines and functions have the names and the wording that the ablations know."""
    done = subprocess.run(
        [sys.executable, "-c", _REMOVE_ALL], cwd=BASE_DIR, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == list(ABLATIONS)


def test_a_line_that_is_gone_ends_the_run() -> None:
    """A run that believes it is without a guard, and is not, would prove nothing."""
    with pytest.raises(GuardNotFound, match=r"fill\.lua has no line"):
        ablations._edit("fill.lua", "return refused or nothing", "")


def test_a_function_that_is_gone_ends_the_run() -> None:
    """It is named."""
    with pytest.raises(GuardNotFound, match="no_such_guard"):
        ablations._replace(Batches, "no_such_guard", None)


def test_every_plant_is_a_role() -> None:
    """The processes that plant are started by name."""
    assert set(PLANTS.values()) <= set(ROLES)
    assert set(PLANTS) <= set(ABLATIONS)
