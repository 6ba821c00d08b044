"""`manage.py bench` with a tiny budget: that each benchmark runs and what the command says; no time is asserted."""

import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from typing import Any

import psycopg
import pytest
import redis
from django.core.management import CommandError, call_command

from benchmarks import catalogue
from benchmarks.contest import Benchmark, BenchmarkFailed, Contest, Progress
from benchmarks.ratio import Compare, Target
from mlserve.settings import env

FIELDS = {
    *("name", "ours", "other", "unit", "compare", "ratio", "target", "holds", "verdict", "rounds", "ours_is"),
    *("other_is", "figures"),
}
_TINY_S = "0.02"


def _bench(*arguments: str) -> dict[str, Any]:
    """The result, whether targets were missed or not: that is the machine's matter."""
    out = io.StringIO()
    try:
        call_command("bench", *arguments, "--json", stdout=out)
    except CommandError as error:
        assert error.returncode == 1 and "target missed" in str(error)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


def _check_sane(result: dict[str, Any]) -> None:
    assert set(result) == FIELDS
    assert result["ours"] > 0 and result["other"] > 0
    assert 0 < result["ratio"]["min"] <= result["ratio"]["median"] <= result["ratio"]["max"]
    assert result["holds"] in (True, False, None)


@pytest.mark.parametrize("name", ["l1", "artifact"])
def test_a_benchmark_without_servers_runs(name: str) -> None:
    """Its lines have everything that the table says; the first one has its name."""
    results = _bench(name, "--seconds", _TINY_S)["results"]
    assert results[0]["name"] == name
    for result in results:
        _check_sane(result)


def test_the_l2_benchmark_leaves_nothing_behind(redis_client: redis.Redis) -> None:
    """What others have in Redis stays."""
    redis_client.set("somebody's", "value")
    (result,) = _bench("l2", "--seconds", _TINY_S)["results"]
    _check_sane(result)
    assert redis_client.keys() == [b"somebody's"]


@pytest.mark.parametrize("name", ["score", pytest.param("batch", marks=pytest.mark.torture)])
def test_the_score_benchmark_brings_its_own_world(redis_client: redis.Redis, name: str) -> None:
    """Data, model, key and web process; the databases of both kinds are gone afterwards."""
    results = _bench(name, "--seconds", _TINY_S, "--rounds", "2")["results"]
    assert [result["name"] for result in results] == [f"{name}-dry-run", f"{name}-journal"]
    for result in results:
        _check_sane(result)
        assert result["rounds"] == 2
    assert redis_client.info("keyspace") == {}
    with psycopg.connect(env.DATABASE_URL) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE '%\\_bench'").fetchall()
    assert left == []


def test_every_benchmark_is_listed() -> None:
    """With a line of what it is about; nothing is measured."""
    out = io.StringIO()
    call_command("bench", "--list", stdout=out)
    assert [line.split()[0] for line in out.getvalue().splitlines()] == list(catalogue.BENCHMARKS)
    assert [one["name"] for one in _bench("--list")["benchmarks"]] == list(catalogue.BENCHMARKS)


@pytest.mark.parametrize(
    ("arguments", "named"), [(["l7"], "l7"), (["l1", "--seconds", "0"], "--seconds"), (["--seconds", "nan"], "nan")]
)
def test_wrong_usage_ends_with_2(arguments: list[str], named: str) -> None:
    """Before anything is measured; the message says what is wrong."""
    with pytest.raises(CommandError, match=named) as refused:
        call_command("bench", *arguments)
    assert refused.value.returncode == 2


def _made_up(others: list[float]) -> Benchmark:
    """One contest with a target of 10, ours always at 1 and the other's figures by turns."""

    @contextmanager
    def opened(_progress: Progress) -> Iterator[list[Contest]]:
        figures = cycle(others)
        yield [
            Contest(
                name="made-up",
                ours_is="this",
                other_is="that",
                unit="us/call",
                compare=Compare.OTHER_OVER_OURS,
                target=Target(10),
                ours=lambda _seconds: 1.0,
                other=lambda _seconds: next(figures),
            )
        ]

    return Benchmark(name="made-up", about="a test", open=opened)


@pytest.mark.parametrize(
    ("others", "code", "holds"),
    [([20.0], 0, "yes"), ([5.0, 20.0], 0, "no verdict: spread larger than effect"), ([5.0], 1, "no")],
)
def test_only_a_missed_target_is_a_failure(
    others: list[float], code: int, holds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No verdict is none; the table says which it was, and what was compared."""
    monkeypatch.setitem(catalogue.BENCHMARKS, "made-up", _made_up(others))
    out, ended_with = io.StringIO(), 0
    try:
        call_command("bench", "made-up", stdout=out)
    except CommandError as error:
        ended_with = error.returncode
        assert str(error) == "target missed: made-up"
    line = next(line for line in out.getvalue().splitlines() if line.startswith("made-up"))
    assert (ended_with, line.rstrip().endswith(f"at least 10  {holds}")) == (code, True)
    assert "this" in out.getvalue() and "that" in out.getvalue()


def test_a_measurement_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 and the reason; no table that looks like a result."""

    def broken(_progress: Progress) -> AbstractContextManager[list[Contest]]:
        raise BenchmarkFailed("made-up: no server")

    monkeypatch.setitem(catalogue.BENCHMARKS, "made-up", Benchmark(name="made-up", about="a test", open=broken))
    out = io.StringIO()
    with pytest.raises(CommandError, match="made-up: no server") as failed:
        call_command("bench", "made-up", stdout=out)
    assert (failed.value.returncode, out.getvalue()) == (1, "")
