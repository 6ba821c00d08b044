"""The image: what goes in, who runs it, and that what it is built from is in the checkout."""

import re

from mlserve.settings.base import BASE_DIR

TEXT = (BASE_DIR / "Dockerfile").read_text("utf-8")
INSTRUCTIONS = [
    re.sub(r"\s+", " ", line)
    for line in re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    if line.strip()
]


def _of(kind: str) -> list[str]:
    return [line.removeprefix(f"{kind} ") for line in INSTRUCTIONS if line.startswith(f"{kind} ")]


def test_the_base_is_pinned_and_every_stage_has_it() -> None:
    """A tag with a minor version, in one place."""
    (default,) = [value.partition("=")[2] for value in _of("ARG")]
    assert re.fullmatch(r"python:3\.\d+-slim", default)
    assert [line.split(" AS ")[0].strip() for line in _of("FROM")] == ["${PYTHON_IMAGE}"] * 2


def test_dependencies_are_installed_by_hash() -> None:
    """From the lock that the service needs, wheels only."""
    (install,) = [line for line in _of("RUN") if "pip install" in line]
    assert "--require-hashes" in install
    assert "--only-binary :all:" in install
    assert install.rstrip().endswith("serve.lock")


def test_the_process_is_not_root() -> None:
    """The last word on the user is a number that is not 0, so that an orchestrator can check it."""
    user = _of("USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert INSTRUCTIONS.index(f"USER {user}") > max(n for n, line in enumerate(INSTRUCTIONS) if line.startswith("RUN"))


def test_no_secret_is_in_the_image() -> None:
    """Nothing that looks like one is set with ENV or ARG; the key of the build lives in one RUN only."""
    assert not re.search(r"(SECRET|PASSWORD|API_KEY|_URL)\w*=", " ".join(_of("ENV") + _of("ARG")))
    assert [line.count("MLSERVE_SECRET_KEY=") for line in _of("RUN") if "MLSERVE_SECRET_KEY" in line] == [1]


def test_the_image_says_how_it_is_and_runs_production() -> None:
    """A health check on the process itself, and the settings that refuse defaults."""
    (check,) = _of("HEALTHCHECK")
    assert "/healthz/live" in check
    assert "DJANGO_SETTINGS_MODULE=mlserve.settings.production" in _of("ENV")[-1]


def test_everything_copied_exists_and_is_let_through() -> None:
    """The ignore file lets in what the image copies, and nothing else."""
    copied = [line.split()[0] for line in _of("COPY") if not line.startswith("--from")]
    rules = [line for line in (BASE_DIR / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(copied)
    assert [path for path in copied if not (BASE_DIR / path).exists()] == []
