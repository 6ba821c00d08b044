"""`manage.py bench journal-cost` with a tiny budget; no time is asserted."""

import io
import json

import pytest
from django.core.management import CommandError, call_command


@pytest.mark.torture
def test_the_benchmark_tells_each_row_and_says_what_that_takes() -> None:
    """On a server of its own; a journal that lacks a row is no result."""
    out = io.StringIO()
    try:
        call_command("bench", "journal-cost", "--seconds", "0.05", "--json", stdout=out)
    except CommandError as error:
        assert "target missed" in str(error)
    results = json.loads(out.getvalue())["results"]
    assert [result["name"] for result in results] == [
        *("journal-cost", "journal-cost-build"),
        *("journal-cost-cpu", "journal-cost-build-cpu"),
    ]
    assert all(result["ours"] > 0 and result["other"] > 0 for result in results)
