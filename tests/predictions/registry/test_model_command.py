"""`manage.py model` and the names of models."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from predictions.models import ModelVersion
from tests.console.records import make_model

pytestmark = pytest.mark.django_db


def test_only_the_versions_of_a_name_are_listed() -> None:
    """Without a name all are; a name that no model has is an error."""
    with pytest.raises(CommandError, match=r"no model is named 'nope'\. Known: none"):
        call_command("model", "list", "--name", "nope")
    make_model(1)
    with pytest.raises(CommandError, match=r"no model is named 'nope'\. Known: fraud"):
        call_command("model", "list", "--name", "nope", "--json")
    for named in ([], ["--name", "fraud"]):
        out = StringIO()
        call_command("model", "list", *named, "--json", stdout=out)
        assert [one["version"] for one in json.loads(out.getvalue())["models"]] == [1]


def test_a_rollback_takes_no_name() -> None:
    """It undoes the last activation, of whatever model: a name would promise something else."""
    with pytest.raises(CommandError, match="no --name") as caught:
        call_command("model", "rollback", "--name", "fraud")
    assert caught.value.returncode == 2


def test_versions_that_somebody_else_wrote_are_listed_too() -> None:
    """Without the figures that training leaves."""
    make_model(1)
    ModelVersion.objects.update(metrics={}, parity={})
    out = StringIO()
    call_command("model", "list", stdout=out)
    assert "AUC -  AP -  parity FAILED" in out.getvalue()
