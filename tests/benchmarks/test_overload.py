"""The benchmark of overload, with a tiny budget."""

import io
import json

import pytest
from django.core.management import CommandError, call_command


@pytest.mark.torture
def test_the_benchmark_of_overload_runs() -> None:
    """Three lines, all refusals and scores and nothing else; what is reached is the machine's matter."""
    out = io.StringIO()
    try:
        call_command("bench", "overload", "--seconds", "0.5", "--json", stdout=out)
    except CommandError as error:
        assert "target missed" in str(error)
    results = json.loads(out.getvalue())["results"]
    assert [result["name"] for result in results] == ["overload-goodput", "overload-recovery", "overload-sessions"]
    storm = results[0]["figures"]["storm"]
    assert storm["failed"] == 0 and storm["refused_per_s"] > 0 and storm["answered_per_s"] > 0
