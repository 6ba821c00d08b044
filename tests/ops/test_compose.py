"""docker-compose.yml: against the schema of the Compose Specification, and against our own rules for containers."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mlserve.settings.base import BASE_DIR

COMPOSE = BASE_DIR / "docker-compose.yml"
TEXT = COMPOSE.read_text("utf-8")
DOCUMENT: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
APP = {"migrate", "processes", "web", "relay", "worker-refresh", "worker-build", "beat"}
ONE_SHOT = {"migrate"}
REQUIRED = re.compile(r"\$\{([A-Z_]+):\?[^}]+\}")
EMPTY_BY_DEFAULT = {"MLSERVE_SECRET_KEY_FALLBACKS": "${MLSERVE_SECRET_KEY_FALLBACKS:-}"}
"""Secrets that are there only while another one is replaced."""
INTERPOLATED = re.compile(r"\$\{([A-Z_]+)(:[?-][^}]*)?\}")


def _example_variables() -> set[str]:
    lines = (BASE_DIR / ".env.example").read_text("utf-8").splitlines()
    return {line.partition("=")[0] for line in lines if line and not line.startswith("#")}


def test_the_file_follows_the_compose_specification() -> None:
    """Valid by the schema of the Compose Specification, once merge keys are resolved."""
    schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(DOCUMENT)


def test_all_parts_of_the_service_are_there() -> None:
    """PostgreSQL, two Valkeys, migration, web, relay, a worker for each queue, one beat."""
    assert set(SERVICES) == {"postgres", "valkey-cache", "valkey-broker", *APP}
    queues = {
        queue for name, of in SERVICES.items() if "worker" in name for queue in _option(of, "--queues").split(",")
    }
    assert queues == {"refresh", "build"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned(name: str) -> None:
    """A tag that names a version (the project's own image is built here); never `latest`, never none."""
    image = SERVICES[name]["image"]
    _, colon, tag = image.partition(":")
    assert colon
    assert tag != "latest"
    assert image == "mlserve:local" if name in APP else re.match(r"\d+", tag)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_containers_run_without_root_and_without_privileges(name: str) -> None:
    """A user of its own, no capabilities, no way to more of them, a file system that cannot be written."""
    service = SERVICES[name]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"privileged", "cap_add", "devices"} & set(service)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_what_goes_on_running_has_a_health_check(name: str) -> None:
    """With a limit of time, and restarted when it ends."""
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["healthcheck"]["timeout"]
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_secrets_come_from_the_environment_and_are_demanded() -> None:
    """No password, key or URL with a password stands in the file; one that is missing stops `up` with a message."""
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|AUTH$|_KEY$", variable):
                assert REQUIRED.fullmatch(value) or value == EMPTY_BY_DEFAULT.get(variable), variable
            if "://" in value:
                assert re.search(r"//\w*:\$\{[A-Z_]+:\?[^}]+\}@", value), variable
    passwords = {"POSTGRES_PASSWORD", "VALKEY_CACHE_PASSWORD", "VALKEY_BROKER_PASSWORD"}
    assert {*passwords, "MLSERVE_SECRET_KEY", "MLSERVE_CACHE_MAC_KEY"} <= set(REQUIRED.findall(TEXT))


def test_the_example_names_every_variable_and_holds_no_secret() -> None:
    """`.env.example` and the compose file speak of the same variables; what is secret is left empty."""
    assert {match[0] for match in INTERPOLATED.findall(TEXT)} == _example_variables()
    example = (BASE_DIR / ".env.example").read_text("utf-8")
    assert not re.search(r"^\w*(PASSWORD|SECRET|_KEY)\w*=.+$", example, re.MULTILINE)


def test_the_cache_evicts_and_the_broker_does_not() -> None:
    """Two servers with opposite duties: the settings that system checks and doctor ask for."""
    cache, broker = (SERVICES[name]["command"][-1] for name in ("valkey-cache", "valkey-broker"))
    assert "maxmemory 256mb\nmaxmemory-policy volatile-lfu\n" in cache
    assert "hash-max-listpack-value 2048\n" in cache
    assert "appendonly no\n" in cache
    assert "maxmemory-policy noeviction\n" in broker
    assert "appendonly yes\n" in broker
    assert SERVICES["valkey-broker"]["volumes"]
    assert "volumes" not in SERVICES["valkey-cache"]


def test_passwords_of_valkey_stand_on_no_command_line() -> None:
    """The shell writes them to the server's stdin; Compose leaves the `$` to the shell."""
    for name in ("valkey-cache", "valkey-broker"):
        script = SERVICES[name]["command"][-1]
        assert script.startswith("exec valkey-server - <<EOF\nrequirepass $$VALKEY_PASSWORD\n")


def test_only_web_is_reached_from_outside_and_on_the_loopback_only() -> None:
    """Servers are on an internal network; TLS and the world are a proxy's business."""
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"web"}
    assert [port.split(":")[0] for port in SERVICES["web"]["ports"]] == ["127.0.0.1"]
    assert DOCUMENT["networks"]["data"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if "front" in service.get("networks", [])} == {"web"}


def test_the_application_starts_when_schema_and_servers_are_ready() -> None:
    """Everything waits for a migration that succeeded and for servers that answer."""
    for name in APP - ONE_SHOT - {"processes"}:
        conditions = {other: of["condition"] for other, of in SERVICES[name]["depends_on"].items()}
        assert conditions["migrate"] == "service_completed_successfully"
        assert {"postgres", "valkey-cache", "valkey-broker"} <= {
            other for other, condition in conditions.items() if condition == "service_healthy"
        }


def test_processes_that_share_metric_files_share_their_process_ids() -> None:
    """Files are named by process id: two containers that both have a process 7 would write to one file."""
    sharing = {name for name, of in SERVICES.items() if any("metrics:" in each for each in of.get("volumes", []))}
    assert sharing == APP - {"migrate", "processes"}
    assert {SERVICES[name]["pid"] for name in sharing} == {"service:processes"}


def test_decisions_that_wait_for_postgres_outlive_the_container() -> None:
    """Web spools to a volume, and what it knows of PostgreSQL is there for the next one."""
    for name in ("spool", "last-known"):
        assert f"{name}:/app/var/{name}" in SERVICES["web"]["volumes"]
        assert name in DOCUMENT["volumes"]


def test_commands_are_the_demos() -> None:
    """Workers and beat are started as `make demo` starts them: the same queues, options and environment."""
    for name in ("worker-refresh", "worker-build", "beat"):
        command = SERVICES[name]["command"]
        assert command[:3] == ["celery", "--app", "mlserve.celery"]
        assert SERVICES[name]["environment"]["MLSERVE_DB_POOL_MAX_SIZE"] == "0"


def test_two_relays_run() -> None:
    """One that ends leaves another, and the reads of a second are no matter for PostgreSQL alone."""
    assert SERVICES["relay"]["command"] == ["python", "manage.py", "relay"]
    assert SERVICES["relay"]["deploy"]["replicas"] == 2


def _option(service: dict[str, Any], name: str) -> str:
    command: list[str] = service["command"]
    return command[command.index(name) + 1]
