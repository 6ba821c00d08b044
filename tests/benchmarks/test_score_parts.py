"""The benchmark of a score's parts: what it takes away exists, and its lines add up."""

import io
import json
from pkgutil import resolve_name

import pytest
from django.core.management import CommandError, call_command

from benchmarks.score_parts_process import EMPTY, PARTS


def test_what_is_taken_away_from_a_score_exists() -> None:
    """Each place, by its name."""
    assert all(callable(resolve_name(place)) for part in PARTS for place in part.places)


@pytest.mark.torture
def test_the_benchmark_of_a_scores_parts_runs() -> None:
    """Each part that can be taken away has a line, and the whole is their sum and a rest."""
    out = io.StringIO()
    try:
        call_command("bench", "score-parts", "--seconds", "0.1", "--json", stdout=out)
    except CommandError as error:
        assert "target missed" in str(error)
    (result,) = json.loads(out.getvalue())["results"]
    table = result["figures"]["us"]
    assert {part.name for part in PARTS if part.of != EMPTY} < table.keys()
    assert table["whole"] > table[EMPTY] > 0
    assert table["all parts together"] + table["rest"] == pytest.approx(table["whole"])
