"""Django's tests are in its source distribution, not in the wheel: that of the installed version, fetched once.

`python -m tests.cache.django_suite.source` fetches it into `var/`, with pip as it is configured, by the hashes of
`requirements/dev.lock`. `make setup` does that.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django

ROOT = Path(__file__).parents[3]
_FETCH_TIMEOUT_S = 600


def django_tests() -> Path:
    """The directory that holds the package `cache`, fetched if need be."""
    kept = ROOT / "var" / f"django-{django.__version__}-tests"
    if not kept.is_dir():
        _fetch(django.__version__, kept)
    return kept


def _fetch(version: str, kept: Path) -> None:
    kept.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        place = Path(scratch)
        (place / "requirements.txt").write_text(_locked(version), "utf-8")
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        download += ["--no-deps", "--no-binary", "django", "--require-hashes", "-r", str(place / "requirements.txt")]
        done = subprocess.run(
            [*download, "-d", scratch], capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"Django {version}'s source distribution is not to be had:\n{done.stderr}")
        (archive,) = place.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            members = [member for member in opened if "/tests/cache/" in member.name]
            opened.extractall(place, members=members, filter="data")
        (unpacked,) = place.glob("*/tests")
        if not kept.is_dir():  # another process may have been quicker
            shutil.move(unpacked, kept)


def _locked(version: str) -> str:
    """The lines of the lock that name Django and its hashes, the source distribution's among them."""
    lock = (ROOT / "requirements" / "dev.lock").read_text("utf-8")
    found = re.search(rf"^django=={re.escape(version)}(?: \\\n +--hash=sha256:[0-9a-f]+)+$", lock, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"requirements/dev.lock has no Django {version}, which is installed; run make setup")
    return found[0] + "\n"


if __name__ == "__main__":
    django_tests()
