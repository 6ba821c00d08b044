"""The reference is complete, and names nothing that is not there."""

import argparse
import ast
import re
from functools import cache
from typing import Any

import pytest
from celery import current_app
from django.conf import settings
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand
from drf_spectacular.generators import SchemaGenerator
from prometheus_client.metrics import MetricWrapperBase

from features.definitions import GROUPS, MODEL_FEATURES
from features.models import TtlPolicy
from mlserve.api.models import ApiKey
from mlserve.cache.outcome import Degradation, MissReason
from mlserve.errors import STATUS_OF, ErrorCode
from mlserve.observability import metrics
from mlserve.settings.base import BASE_DIR
from tests.docs.pages import README, first_column, reference, section

APPS = ("mlserve", "features", "predictions", "warmup")
COMMANDS = sorted(name for name, app in get_commands().items() if str(app).startswith(APPS))
METRICS = {name: metric for name, metric in vars(metrics).items() if isinstance(metric, MetricWrapperBase)}


def _variables_of_the_environment() -> set[str]:
    tree = ast.parse((BASE_DIR / "mlserve" / "settings" / "env.py").read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return {
        str(call.args[0].value)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "_env"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }


def test_every_setting_is_documented_and_no_other() -> None:
    """The table has exactly the variables that `env.py` reads, and Django's own."""
    read = _variables_of_the_environment()
    assert len(read) > 10
    assert first_column(reference("settings")) == read | {"DJANGO_SETTINGS_MODULE"}


def test_every_metric_is_documented_and_no_other() -> None:
    """Under the name that Prometheus sees, with its type and every label."""
    page = reference("metrics")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `mlserve_")}
    exposed = {
        next(iter(metric.describe())).name + ("_total" if metric._type == "counter" else ""): metric
        for metric in METRICS.values()
    }
    assert set(rows) == set(exposed)
    for name, metric in exposed.items():
        _, _, kind, labels, meaning, _ = (cell.strip() for cell in rows[name].split("|"))
        shown = set(re.findall(r"`(\w+)`", labels)) - {"pid"}  # Prometheus' own, for gauges of each process
        assert (kind, shown) == (metric._type, set(metric._labelnames)), name
        assert meaning


def test_every_error_code_is_documented_with_its_status() -> None:
    """The table of codes is the table of the code."""
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", reference("errors"), re.MULTILINE)
    assert {(ErrorCode(code), int(status)) for code, status in rows} == {
        (code, int(status)) for code, status in STATUS_OF.items()
    }


def test_every_reason_is_documented_and_no_other() -> None:
    """Why a score is degraded, and why a tier missed."""
    page = reference("errors")
    assert first_column(section(page, "## Why a score is degraded")) == {str(reason) for reason in Degradation}
    assert first_column(section(page, "## Why a tier missed")) == {str(reason) for reason in MissReason}


def test_every_check_is_documented_and_no_other() -> None:
    """By the ids that the code reports."""
    sources = [path for app in APPS for path in (BASE_DIR / app).rglob("*.py")]
    reported = {found for path in sources for found in re.findall(r'id="(mlserve\.[EW]\d+)"', path.read_text("utf-8"))}
    assert reported
    assert first_column(section(reference("checks"), "## System checks")) == reported


@cache
def _parser(command: str) -> argparse.ArgumentParser:
    loaded = load_command_class(get_commands()[command], command)
    assert isinstance(loaded, BaseCommand)
    return loaded.create_parser("manage.py", command)


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The command's own, those of its sub-commands included."""
    common = {option for action in BaseCommand().create_parser("", "")._actions for option in action.option_strings}
    options: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for chosen in action.choices.values():
                options |= _options(chosen)
        options |= {option for option in action.option_strings if option.startswith("--")} - common
    return options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented_with_its_options(command: str) -> None:
    """A section with all options and no others, and a place in the README."""
    shown = first_column(section(reference("commands"), f"## {command}"))
    assert {name.split()[0] for name in shown if name.startswith("--")} == _options(_parser(command))
    assert f"`{command}`" in README.read_text("utf-8")


def test_no_command_is_documented_that_is_not_there() -> None:
    """Nor a scheduled task, by name, task and queue."""
    page = reference("commands")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert sorted(set(headings) - {"make", "Scheduled tasks"}) == COMMANDS
    rows = [
        tuple(re.findall(r"`([^`]+)`", line)[:3])
        for line in section(page, "## Scheduled tasks").splitlines()
        if line.startswith("| `")
    ]
    assert set(rows) == {
        (name, of["task"], current_app.amqp.router.route({}, of["task"])["queue"].name)
        for name, of in settings.CELERY_BEAT_SCHEDULE.items()
    }


def test_every_make_target_is_documented() -> None:
    """Those that `make help` lists."""
    makefile = (BASE_DIR / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) - {"help"}
    assert first_column(section(reference("commands"), "## make")) == targets


def test_every_feature_and_policy_field_is_documented_and_no_other() -> None:
    """Groups with their stored values, model features in order, fields of a policy."""
    page = reference("features-and-policies")
    groups = section(page, "## Feature groups")
    assert first_column(groups) == set(GROUPS)
    for group in GROUPS.values():
        row = next(line for line in groups.splitlines() if line.startswith(f"| `{group.name}`"))
        assert f"| {group.entity} | {group.cadence} | {group.write} |" in row
        names = [value.name for value in (*group.values, *group.repeated)]
        shown = [names[0], *names[-2:]] if group.name.endswith("_embedding") else names  # e0 to e15
        assert [name for name in shown if f"`{name}`" not in row] == []
    features = re.findall(r"^\| `(\w+)`", section(page, "## Model features"), re.MULTILINE)
    assert features == list(MODEL_FEATURES)
    fields = {field.name for field in TtlPolicy._meta.get_fields()}
    assert first_column(section(page, "## Policies")) == fields


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    return document


def test_every_address_of_the_api_is_documented() -> None:
    """With every method; and the three that OpenAPI leaves out."""
    page = reference("http-api")
    shown = first_column(page)
    for path, operations in _document()["paths"].items():
        assert path in shown
        row = next(line for line in page.splitlines() if line.startswith("|") and f"`{path}`" in line)
        of_path = [line for line in page.splitlines() if line.startswith("|") and f"`{path}`" in line]
        for method in operations:
            assert any(f"| {method.upper()} |" in line for line in of_path), (method, row)
    assert {"/metrics"} <= shown
    assert "`/openapi.json`" in page and "`/docs`" in page


def test_every_field_of_the_api_is_documented() -> None:
    """Of every request and answer."""
    pages = reference("http-api") + reference("features-and-policies") + reference("errors") + reference("checks")
    named = set(re.findall(r"`(\w+)`", pages))
    fields = {
        field for schema in _document()["components"]["schemas"].values() for field in schema.get("properties", {})
    }
    assert len(fields) > 40
    assert sorted(fields - named) == []


def test_every_scope_of_a_key_is_documented() -> None:
    """Where keys are made."""
    page = (BASE_DIR / "docs" / "how-to" / "rotate-api-keys.md").read_text("utf-8")
    assert first_column(page) == set(ApiKey.Scope.values)
