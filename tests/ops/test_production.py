"""Production settings in a process of their own: clean under the deployment checks, or refused with every reason."""

import os
import subprocess
import sys

from mlserve.settings.base import BASE_DIR

GOOD = {
    "MLSERVE_SECRET_KEY": "".join(chr(ord("a") + number % 26) for number in range(64)),
    "MLSERVE_ALLOWED_HOSTS": "scores.example.com,127.0.0.1",
    "DATABASE_URL": os.environ["DATABASE_URL"],
    "REDIS_CACHE_URL": os.environ["REDIS_CACHE_URL"],
    "REDIS_BROKER_URL": os.environ["REDIS_BROKER_URL"],
    "MLSERVE_CACHE_MAC_KEY": "0123456789abcdef" * 2,
}


def _check(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "MLSERVE_VAR_DIR": os.environ["MLSERVE_VAR_DIR"], **variables}
    command = "manage.py check --deploy --fail-level WARNING --settings mlserve.settings.production"
    return subprocess.run(
        [sys.executable, *command.split()], cwd=BASE_DIR, env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_whole_environment_passes_the_deployment_checks() -> None:
    """Not even a warning."""
    answer = _check(**GOOD)
    assert answer.returncode == 0, answer.stderr
    assert "no issues" in answer.stdout


def test_plain_http_has_to_be_said_and_is_warned_of() -> None:
    """MLSERVE_HTTPS=false loads, and Django names what that gives up: redirect, HSTS, secure cookies."""
    answer = _check(**GOOD, MLSERVE_HTTPS="false")
    assert answer.returncode == 1
    assert "ImproperlyConfigured" not in answer.stderr
    assert {"security.W004", "security.W008", "security.W010", "security.W016"} <= {
        word.strip("(?:)") for word in answer.stderr.split()
    }


def test_everything_that_is_missing_is_named_at_once() -> None:
    """Whoever deploys mends it in one go."""
    answer = _check()
    assert answer.returncode == 1
    last = answer.stderr.strip().splitlines()[-1]
    for name in (
        "MLSERVE_SECRET_KEY",
        "DATABASE_URL",
        "REDIS_CACHE_URL",
        "REDIS_BROKER_URL",
        "MLSERVE_CACHE_MAC_KEY (or the word off)",
    ):
        assert name in last


def test_a_short_or_dull_secret_is_refused() -> None:
    """Fewer than 50 characters, or of fewer than 5 kinds, sign nothing; the secret itself is not shown."""
    for secret in ("tooshort-but-random-9f86d081884c7d65", "ab" * 40):
        answer = _check(**{**GOOD, "MLSERVE_SECRET_KEY": secret})
        assert answer.returncode == 1
        assert "MLSERVE_SECRET_KEY needs at least 50 characters" in answer.stderr
        assert secret not in answer.stderr


def test_a_fallback_is_as_good_as_a_key() -> None:
    """Whoever guesses it signs as well; both are named if both are weak, and neither is shown."""
    other = GOOD["MLSERVE_SECRET_KEY"][::-1]
    assert _check(**GOOD, MLSERVE_SECRET_KEY_FALLBACKS=other).returncode == 0
    for weak in ("tooshort-but-random-9f86d081884c7d65", "ab" * 40):
        answer = _check(**GOOD, MLSERVE_SECRET_KEY_FALLBACKS=f"{other},{weak}")
        assert answer.returncode == 1
        last = answer.stderr.strip().splitlines()[-1]
        assert "each key of MLSERVE_SECRET_KEY_FALLBACKS needs at least 50 characters" in last
        assert "MLSERVE_SECRET_KEY needs" not in last
        assert weak not in answer.stderr and other not in answer.stderr
    both = _check(**{**GOOD, "MLSERVE_SECRET_KEY": "short", "MLSERVE_SECRET_KEY_FALLBACKS": "shorter"}).stderr
    assert "MLSERVE_SECRET_KEY needs" in both and "MLSERVE_SECRET_KEY_FALLBACKS needs" in both


def test_l2_is_sealed_unless_somebody_spells_out_that_it_is_not() -> None:
    """A key that anybody could guess is refused, and not shown; `off` is an answer, nothing is none."""
    assert _check(**{**GOOD, "MLSERVE_CACHE_MAC_KEY": "off"}).returncode == 0
    assert "MLSERVE_CACHE_MAC_KEY" in _check(**{**GOOD, "MLSERVE_CACHE_MAC_KEY": ""}).stderr
    for key in ("short-9f86d081884c7d65", "ab" * 40, "OFF"):
        answer = _check(**{**GOOD, "MLSERVE_CACHE_MAC_KEY": key})
        assert answer.returncode == 1
        last = answer.stderr.strip().splitlines()[-1]
        assert "MLSERVE_CACHE_MAC_KEY: needs at least 32 characters, 5 of them different; or the word off" in last
        assert key not in last


def test_cache_and_broker_on_one_server_are_refused() -> None:
    """Another database number is not another server (mlserve.E001)."""
    answer = _check(**{**GOOD, "REDIS_BROKER_URL": GOOD["REDIS_CACHE_URL"].removesuffix("/0") + "/1"})
    assert answer.returncode == 1
    assert "mlserve.E001" in answer.stderr
