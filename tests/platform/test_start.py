"""What a process loads when it starts: only what it serves with."""

import os
import subprocess
import sys

import pytest

from mlserve.settings.base import BASE_DIR

TRAINING = ("sklearn", "scipy", "skops", "skl2onnx", "onnx", "pyarrow", "pandas")
"""Take seconds, and hundreds of megabytes, to load."""


@pytest.mark.parametrize(
    "start",
    [
        "import mlserve.wsgi",
        "import django; django.setup(); from django.core.management import get_commands; get_commands()",
    ],
)
def test_nothing_that_only_training_needs_is_loaded(start: str) -> None:
    """Neither by a web process nor by a command that asks for none of it."""
    found = f"{start}; import sys; print([name for name in {TRAINING} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", found],
        cwd=BASE_DIR,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "mlserve.settings.local"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
