"""The parser of requests under mutated bodies: never surprised, never slow, and strict."""

import json
import os
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
import pytest

from mlserve.api.bodies import BodyTooLarge, MalformedBody
from mlserve.api.problems import Problem
from mlserve.errors import STATUS_OF, TITLE_OF, MlserveError
from predictions.api.decoding import InvalidFields, decode_score_batch, decode_score_request
from predictions.messages import ScoreRequest
from tests.abuse.mutations import CORPUS, mutated
from tests.fixtures.cpu import cpu_s

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MAX_CPU_S = 0.05
MINUTES = float(os.environ.get("TORTURE_MINUTES", "3"))
"""Of the long form; an hour finds more."""


def test_mutated_bodies_are_judged() -> None:
    """Ten thousand, the same in every run: some are still good, most are refused, and in both ways."""
    random = Random("short")
    verdicts = Counter(_judge(mutated(random)) for _ in range(10_000))
    assert min(verdicts[kind] for kind in (ScoreRequest, InvalidFields, MalformedBody)) > 100, verdicts


@pytest.mark.torture
@pytest.mark.timeout(MINUTES * 60 + 60)
def test_mutated_bodies_are_judged_for_long() -> None:
    """Others in every run, for TORTURE_MINUTES; a failure shows the body."""
    random, ends = Random(), time.monotonic() + MINUTES * 60
    judged = 0
    while time.monotonic() < ends:
        _judge(mutated(random))
        judged += 1
    print(f"{judged:,} bodies in {MINUTES:g} minutes")


def _judge(body: bytes) -> type:
    try:
        assert cpu_s(lambda: _decoded(body), enough_s=MAX_CPU_S) < MAX_CPU_S
        verdict = _decoded(body)
        if isinstance(verdict, ScoreRequest):
            _check_taken(body, verdict)
        else:
            _check_refusal(verdict)
        _judge_as_an_item(body, verdict)
    except Exception as error:
        raise AssertionError(f"{body[:2_000]!r} ({len(body)} bytes): {error!r}") from error
    return type(verdict)


def _judge_as_an_item(body: bytes, alone: ScoreRequest | InvalidFields | MalformedBody) -> None:
    """Between two good ones it is taken if it is taken alone, and harms neither where the list can be read at all."""
    listed = b",".join((CORPUS[0], body, CORPUS[0]))

    def decode() -> list[ScoreRequest | MlserveError] | None:
        try:
            return decode_score_batch(b'{"transactions":[' + listed + b"]}", now=NOW)
        except (MalformedBody, BodyTooLarge):
            return None

    assert cpu_s(decode, enough_s=MAX_CPU_S) < MAX_CPU_S
    items = decode()
    if isinstance(alone, ScoreRequest):
        assert items is not None and items[1] == alone
    elif items is not None:
        assert isinstance(items[0], ScoreRequest) and isinstance(items[-1], ScoreRequest)


def _decoded(body: bytes) -> ScoreRequest | InvalidFields | MalformedBody:
    try:
        return decode_score_request(body, now=NOW)
    except (InvalidFields, MalformedBody) as refusal:
        return refusal


def _check_taken(body: bytes, taken: ScoreRequest) -> None:
    """Another parser, told to be strict, reads the same."""
    read = json.loads(body.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    assert set(read) <= set(ScoreRequest.__struct_fields__)
    moment = datetime.fromisoformat(read["occurred_at"].upper())  # RFC 3339 allows small letters
    assert abs(moment - taken.occurred_at) <= timedelta(microseconds=1)  # one cuts what it cannot hold, one rounds it
    same = {**read, "occurred_at": taken.occurred_at}
    assert {name: getattr(taken, name) for name in same} == same


def _check_refusal(refusal: InvalidFields | MalformedBody) -> None:
    """It can be sent: short, and every name in it has a spelling in UTF-8."""
    assert len(refusal.errors) <= 50
    problem = Problem(
        type="",
        title=TITLE_OF[refusal.code],
        status=STATUS_OF[refusal.code],
        detail=refusal.detail,
        code=refusal.code,
        request_id="",
        errors=refusal.errors,
    )
    assert len(msgspec.json.encode(problem)) < 64 * 1024
    if isinstance(refusal, InvalidFields):
        assert refusal.errors
        assert all(error.pointer is not None for error in refusal.errors)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a duplicate key was taken"
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} was taken")
