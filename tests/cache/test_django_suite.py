"""What Django promises of a cache, its own tests say: they run against L1's backend."""

import ast
import os
import re
import subprocess
import sys

import pytest

from mlserve.settings import env
from tests.cache.django_suite.source import ROOT, django_tests

_FEWEST_PASSED = 40
"""A suite that finds no tests passes as well."""
_TIMEOUT_S = 100


def _skipped_by_us() -> int:
    """Read, not imported: the module needs Django's tests on the path."""
    tree = ast.parse((ROOT / "tests/cache/django_suite/suite.py").read_text("utf-8"))
    (skipped,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "SKIPPED"
    ]
    assert isinstance(skipped, ast.Dict)
    return len(skipped.keys)


@pytest.mark.timeout(700)  # the first run fetches Django's tests
def test_the_backend_passes_the_django_tests() -> None:
    """All of locmem's but those that `suite.py` names with a reason."""
    ran = subprocess.run(
        [sys.executable, "-m", "django", "test", "--noinput", "tests.cache.django_suite.suite"],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.cache.django_suite.suite_settings",
            "DATABASE_URL": str(env.DATABASE_URL),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(django_tests()))),
        },
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    counts = re.search(r"Ran (\d+) tests.*OK \(skipped=(\d+)\)", ran.stderr, re.DOTALL)
    assert counts is not None, ran.stderr
    total, skipped = map(int, counts.groups())
    assert skipped == _skipped_by_us()
    assert total - skipped >= _FEWEST_PASSED
