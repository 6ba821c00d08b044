"""`manage.py bench l1 --trace`: what it counts, and what it refuses."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from mlserve.cache.tiers import l1_locmem
from tests.cache import traces


def _replay(path: Path, capacity: int) -> dict[str, Any]:
    out = io.StringIO()
    call_command("bench", "l1", "--trace", str(path), "--capacity", str(capacity), "--json", stdout=out)
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.txt"
    path.write_text("a\nb\na\n\nc\na\r\nb", "utf-8")
    return path


def test_hits_are_counted_for_both(trace: Path) -> None:
    """Each line is a request, the last without an end as well; empty lines are none. In memory for two: a, a."""
    result = _replay(trace, 10)
    assert result == {
        "capacity": 10,
        "requests": 6,
        "hits": 3,
        "hit_rate": 0.5,
        "lru_hits": 3,
        "lru_hit_rate": 0.5,
        "difference_points": 0.0,
    }
    assert _replay(trace, 2)["lru_hits"] == 2
    assert _replay(trace, 1)["hits"] == _replay(trace, 1)["lru_hits"] == 0


def test_the_text_says_the_same(trace: Path) -> None:
    """Requests, hits and rates of both, the difference in points."""
    out = io.StringIO()
    call_command("bench", "l1", "--trace", str(trace), "--capacity", "10", stdout=out)
    text = out.getvalue()
    for said in ("6 requests", "3 hits", "50.00%", "lru", "+0.00 points"):
        assert said in text


def test_a_loop_shows_the_difference(tmp_path: Path) -> None:
    """LRU never hits on it; through Django's interface L1 does."""
    path = tmp_path / "loop.txt"
    path.write_text("".join(f"customer:{key}\n" for key in traces.loop(20_000, 1_000, 1.5)), "utf-8")
    result = _replay(path, 1_000)
    assert result["lru_hits"] == 0
    assert result["difference_points"] > 20
    assert result["difference_points"] == pytest.approx(100 * result["hits"] / 20_000)


def test_any_text_is_a_key(tmp_path: Path) -> None:
    """Spaces, control characters, 1,000 characters, other scripts: no warning, and each is its own key."""
    path = tmp_path / "trace.txt"
    path.write_text("\n".join(["two words", "tab\tbed", "\x00", "x" * 1_000, "ключ", "鍵", "\u2028"] * 2), "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = _replay(path, 100)
    assert (result["requests"], result["hits"]) == (14, 7)


def test_nothing_is_left_behind(trace: Path) -> None:
    """A second replay starts cold, and the process keeps no store of it."""
    before = set(l1_locmem._stores)
    assert _replay(trace, 10) == _replay(trace, 10)
    assert set(l1_locmem._stores) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no keys"),
        (b"\n\n\r\n", "no keys"),
        (b"a\n\xff\xfe\n", "line 2 is not UTF-8"),
        (b"a\nb\n" + b"x" * 100_000, "line 3 is longer than 65,536 bytes"),
    ],
    ids=["empty", "empty lines", "not UTF-8", "long line"],
)
def test_what_is_no_trace_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    """Usage error 2, with the file and the place; nothing is printed as a result."""
    path, out = tmp_path / "trace.txt", io.StringIO()
    path.write_bytes(content)
    with pytest.raises(CommandError, match=said) as refused:
        call_command("bench", "l1", "--trace", str(path), "--capacity", "10", stdout=out)
    assert (refused.value.returncode, out.getvalue()) == (2, "")
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    """One that is not there, or a directory."""
    with pytest.raises(CommandError, match="cannot be read") as refused:
        call_command("bench", "l1", "--trace", str(tmp_path / name), "--capacity", "10")
    assert refused.value.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["l1", "--capacity", "10"], "--capacity is for --trace"),
        (["l2", "--trace", "FILE", "--capacity", "10"], "not for l2"),
        (["l1", "l2", "--trace", "FILE", "--capacity", "10"], "not for l1, l2"),
        (["--trace", "FILE", "--capacity", "10"], "not for all"),
        (["l1", "--trace", "FILE"], "needs --capacity"),
        (["l1", "--trace", "FILE", "--capacity", "0"], "--capacity 0"),
        (["l1", "--trace", "FILE", "--capacity", "-5"], "--capacity -5"),
        (["l1", "--trace", "FILE", "--capacity", "10000001"], "--capacity 10000001"),
        (["l1", "--trace", "FILE", "--capacity", "10", "--seconds", "1"], "--seconds"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], said: str, trace: Path) -> None:
    """Before the file is read; the message says what is wrong."""
    with pytest.raises(CommandError, match=said) as refused:
        call_command("bench", *(str(trace) if argument == "FILE" else argument for argument in arguments))
    assert refused.value.returncode == 2
