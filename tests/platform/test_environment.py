"""The environment: read in one place, wrong in one message."""

import os
import subprocess
import sys

import pytest

from mlserve.settings.base import BASE_DIR


def _load(module: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "MLSERVE_VAR_DIR": os.environ["MLSERVE_VAR_DIR"], **variables}
    return subprocess.run(
        [sys.executable, "-c", f"import {module}"], cwd=BASE_DIR, env=environment, capture_output=True, text=True
    )


def _show(line: str, **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"], "MLSERVE_VAR_DIR": os.environ["MLSERVE_VAR_DIR"], **variables}
    code = f"from mlserve.settings import local; {line}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=BASE_DIR, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_all_mistakes_are_reported_at_once() -> None:
    """Whoever mends a deployment sees every wrong variable in one go, with what was wrong about it."""
    broken = {
        "MLSERVE_LOG_LEVEL": "LOUD",
        "MLSERVE_DB_POOL_MAX_SIZE": "many",
        "GRANIAN_BLOCKING_THREADS": "some",
        "MLSERVE_CACHE_BUDGET_MS": "0",
        "MLSERVE_HTTPS": "perhaps",
        "MLSERVE_CACHE_MAC_KEY": "short",
        "MLSERVE_SECRET_KEY_FALLBACKS": "one,,another",
    }
    answer = _load("mlserve.settings.local", **broken)
    assert answer.returncode == 1
    message = answer.stderr.strip().splitlines()[-1]
    assert "ImproperlyConfigured: the environment is wrong" in message
    assert [name for name in broken if name not in message] == []


def test_a_correct_environment_loads() -> None:
    """The defaults are enough for a laptop."""
    assert _load("mlserve.settings.local").returncode == 0


def test_one_machine_seals_with_a_key_of_its_own() -> None:
    """Every command of a checkout finds the same one; `off` is heeded, and a key that is given is taken."""
    shown = "print(local.CACHE_MAC_KEY)"
    key = _show(shown)
    assert len(key) >= 50 and _show(shown) == key
    assert _show("print(local.CACHE_MAC_KEY != local.SECRET_KEY)") == "True"
    assert _show(shown, MLSERVE_CACHE_MAC_KEY="off") == ""
    assert _show(shown, MLSERVE_CACHE_MAC_KEY="0123456789abcdef" * 2) == "0123456789abcdef" * 2


@pytest.mark.parametrize("keys", ["one,", ",", " ", "one, another"])
def test_an_empty_key_never_signs(keys: str) -> None:
    """A comma too many would let everybody sign; a blank belongs to no key. The keys are not shown."""
    answer = _load("mlserve.settings.local", MLSERVE_SECRET_KEY_FALLBACKS=keys)
    assert answer.returncode == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert "MLSERVE_SECRET_KEY_FALLBACKS: needs keys with a comma between them" in last
    assert "another" not in last


@pytest.mark.parametrize(("keys", "known"), [("", []), ("one", ["one"]), ("one,another", ["one", "another"])])
def test_earlier_keys_are_known_to_django(keys: str, known: list[str]) -> None:
    """None unless somebody names them."""
    assert _show("print(local.SECRET_KEY_FALLBACKS)", MLSERVE_SECRET_KEY_FALLBACKS=keys) == str(known)


def test_production_names_everything_that_is_missing() -> None:
    """Production has no defaults for secrets and servers, and says so once."""
    message = _load("mlserve.settings.production").stderr.strip().splitlines()[-1]
    for name in ("MLSERVE_SECRET_KEY", "DATABASE_URL", "REDIS_CACHE_URL", "REDIS_BROKER_URL"):
        assert name in message


@pytest.mark.parametrize(
    ("threads", "at_once", "waiting"),
    [("1", 1, 0), ("4", 4, 0), ("8", 4, 0), ("16", 4, 3), ("26", 4, 6), ("64", 10, 16)],
)
def test_places_for_scores_follow_from_the_threads(threads: str, at_once: int, waiting: int) -> None:
    """With what is left over, somebody can refuse and answer what is no score; few threads all work."""
    found = "django.setup(); from mlserve.checks import check_threads_left; print(check_threads_left())"
    shown = _show(
        f"import django; print(local.env.SCORES_AT_ONCE, local.env.SCORES_WAITING); {found}",
        GRANIAN_BLOCKING_THREADS=threads,
        DJANGO_SETTINGS_MODULE="mlserve.settings.local",
    )
    assert shown.split() == [str(at_once), str(waiting), "[]"]
    assert int(threads) == 1 or at_once + waiting < int(threads) or waiting == 0


def test_options_of_the_database_url_stay() -> None:
    """Beside what the project sets itself: TLS that was asked for is not dropped."""
    line = "options = local.DATABASES['default']['OPTIONS']; print(options['sslmode'], options['connect_timeout'])"
    url = "postgresql://mlserve@db.example.com/mlserve?sslmode=verify-full&connect_timeout=7"
    assert _show(line, DATABASE_URL=url) == "verify-full 7"


def test_behind_a_transaction_pooler_nothing_is_prepared() -> None:
    """One setting; cursors that live on after their transaction are out as well."""
    line = (
        "of = local.DATABASES['default']; print(of['OPTIONS']['prepare_threshold'], of['DISABLE_SERVER_SIDE_CURSORS'])"
    )
    assert _show(line, MLSERVE_DB_TRANSACTION_POOLER="true") == "None True"
    assert _show(line) == "2 False"
