"""Bodies that are made to cost much: each is refused for less than they cost to send."""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.api.bodies import MAX_BODY_BYTES, MalformedBody
from mlserve.api.json_limits import MAX_DEPTH, MAX_DIGITS, MAX_VALUES, refuse_outsized
from mlserve.errors import MlserveError
from predictions.api.decoding import decode_labels, decode_score_batch, decode_score_request
from tests.fixtures.cpu import cpu_s

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
GOOD = {
    "transaction_id": "t-1",
    "occurred_at": "2026-11-23T11:59:00Z",
    "customer_id": "c.1",
    "merchant_id": "m:1",
    "amount": 12.5,
}
MAX_CPU_S = 0.05


def full(before: str, again: str, after: str = "") -> bytes:
    """As much of `again` as the largest body takes, between the others."""
    head, unit, tail = before.encode(), again.encode(), after.encode()
    return head + unit * ((MAX_BODY_BYTES - len(head) - len(tail)) // len(unit)) + tail


def member(before: str, again: str, after: str = "") -> bytes:
    """A good request with one member more, as large as it may be."""
    return full(json.dumps(GOOD)[:-1] + ", " + before, again, after + "}")


def numbered(pattern: str, *, after: str) -> bytes:
    """Members of different names, as many as fit."""
    size = len(pattern.format(0)) + 1
    return ("{" + ",".join(pattern.format(number) for number in range(MAX_BODY_BYTES // size - 2)) + after).encode()


HOSTILE = {
    "one key again and again": full('{"a":1', ',"a":1', "}"),
    "a known key again and again": full('{"amount":1', ',"amount":1', "}"),
    "many keys": numbered('"k{:05}":1', after="}"),
    "many keys and one twice": numbered('"k{:05}":1', after=',"k00000":1}'),
    "many keys that are one when read": full('{"\\u0061":1', ',"\\u0061":1', "}"),
    "colliding multiples": numbered('"{:020}":1', after="}"),
    "an integer": member('"max_age_s": 1', "0"),
    "a negative integer": member('"max_age_s": -1', "0"),
    "decimals": member('"max_age_s": 0.', "1"),
    "a zero's decimals": member('"max_age_s": 0.', "0"),
    "an exponent": member('"max_age_s": 1e', "9"),
    "a small exponent": member('"max_age_s": 1e-', "9"),
    "arrays": full("", "["),
    "objects": full("", '{"a":'),
    "arrays that close": member('"note": ', "[", "]" * 100_000),
    "arrays beside each other": member('"note": [[]', ",[]", "]"),
    "objects beside each other": member('"note": [{}', ",{}", "]"),
    "integers in an array": member('"note": [1', ",1", "]"),
    "strings in an array": member('"note": [""', ',""', "]"),
    "nulls": member('"note": [null', ",null", "]"),
    "a string": member('"note": "', "x", '"'),
    "escapes": member('"note": "', "\\u0061", '"'),
    "escaped quotes": member('"note": "', '\\"', '"'),
    "escaped quotes without an end": full('{"', '\\"'),
    "backslashes": full('{"a": "', "\\"),
    "quotes": full("", '"'),
    "a known field": member('"currency": "', "A", '"'),
    "dots": member('"customer_id": "', ".", '"'),
    "dots and another": full('{"customer_id": "', ".", '!"}'),
    "a moment": full('{"occurred_at": "2026-11-23T11:59:00.', "0", 'Z"}'),
    "spaces": full("", " "),
    "NULs": full("", "\0"),
    "commas": full("", ","),
    "colons": full("{", ":"),
    "three bytes each": full('{"a":"', "\u20ac", '"}'),
    "broken UTF-8 at the end": full('{"a":"', "x")[:-1] + b"\xff",
    "lone surrogates": member('"note": "', "\\ud800", '"'),
    "closing brackets": full("", "]"),
}


def refused(body: bytes) -> MlserveError:
    with pytest.raises(MlserveError) as caught:
        decode_score_request(body, now=NOW)
    return caught.value


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused_for_little(name: str) -> None:
    """As large as a body may be: within 50 ms of CPU, with a short list of what is wrong."""
    body = HOSTILE[name]
    assert 0.9 * MAX_BODY_BYTES < len(body) <= MAX_BODY_BYTES + 16 or "close" in name
    assert cpu_s(lambda: refused(body), enough_s=MAX_CPU_S) < MAX_CPU_S
    error = refused(body)
    assert str(error.code) in ("malformed_request", "invalid_fields")
    assert len(error.errors) <= 50
    assert sum(len(each.detail) + len(each.pointer or "") for each in error.errors) < 50 * 400


OF_LISTS = {
    "an object again and again": full("", "{}"),
    "empty objects": full("[{}", ",{}", "]"),
    "numbers": full("[1", ",1", "]"),
    "one object of many keys": b"[" + HOSTILE["many keys and one twice"][:-1] + b"}]",
    "a key again and again": full('[{"a":1', ',"a":1', "}]"),
    "arrays": full("[", "["),
    "digits": full('[{"amount": 0.', "1", "}]"),
    "strings": full('[""', ',""', "]"),
    "objects that are wrong in every field": full(
        '[{"transaction_id":0}', ',{"transaction_id":"","amount":-1,"a":0,"b":0,"c":0,"d":0}', "]"
    ),
}


@pytest.mark.parametrize("name", [*HOSTILE, *(f"a list of {name}" for name in OF_LISTS)])
@pytest.mark.parametrize(("member", "decode"), [("transactions", decode_score_batch), ("labels", decode_labels)])
def test_hostile_lists_are_refused_for_little(name: str, member: str, decode: Callable[..., object]) -> None:
    """As a whole, or each object for itself: for no more than an object alone, with no longer answer."""
    inside = OF_LISTS.get(name.removeprefix("a list of ")) or b"[" + HOSTILE[name] + b"]"
    body = f'{{"{member}":'.encode() + inside + b"}"

    def judge() -> object:
        try:
            return decode(body, now=NOW)
        except MlserveError as error:
            return error

    assert cpu_s(judge, enough_s=MAX_CPU_S) < MAX_CPU_S
    outcomes = judge()
    refusals = outcomes if isinstance(outcomes, list) else [outcomes]
    assert all(isinstance(refusal, MlserveError) for refusal in refusals)
    assert sum(len(refusal.errors) for refusal in refusals if isinstance(refusal, MlserveError)) < 10_000


def test_the_largest_good_lists_pass() -> None:
    """A hundred transactions and a thousand labels with all of their fields stay within the limits."""
    transactions = [{**GOOD, "transaction_id": f"t-{n}", "currency": "EUR", "max_age_s": 0.5} for n in range(100)]
    scores = decode_score_batch(json.dumps({"transactions": transactions}).encode(), now=NOW)
    assert len(scores) == 100 and not [each for each in scores if isinstance(each, MlserveError)]
    labels = [
        {"transaction_id": f"t-{n}", "is_fraud": True, "reported_at": "2026-11-23T11:59:00Z"} for n in range(1_000)
    ]
    taken = decode_labels(json.dumps({"labels": labels}).encode(), now=NOW)
    assert len(taken) == 1_000 and not [each for each in taken if isinstance(each, MlserveError)]


@pytest.mark.parametrize(
    ("inside", "beyond", "limit"),
    [
        ("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "[" * MAX_DEPTH + "]" * MAX_DEPTH, f"more than {MAX_DEPTH}"),
        ('{"a":' * 15 + "1" + "}" * 15, '{"a":' * 16 + "1" + "}" * 16, f"more than {MAX_DEPTH}"),
        ("1" * MAX_DIGITS, "1" * (MAX_DIGITS + 1), f"at most {MAX_DIGITS:,}"),
        ("0." + "1" * MAX_DIGITS, "0." + "1" * (MAX_DIGITS + 1), f"at most {MAX_DIGITS:,}"),
        ("[1" + ",1" * (MAX_VALUES - 1) + "]", "[1" + ",1" * MAX_VALUES + "]", f"more than {MAX_VALUES:,}"),
    ],
)
def test_limits_are_exact(inside: str, beyond: str, limit: str) -> None:
    """What is at the limit passes; one more is refused with the limit."""
    refuse_outsized(f'{{"a":{inside}}}'.encode())
    with pytest.raises(MalformedBody, match=limit):
        refuse_outsized(f'{{"a":{beyond}}}'.encode())


@pytest.mark.parametrize(
    "filler", ["[" * 5_000, "1" * 5_000, "," * 5_000, '\\"[[[[[[[[[[[[[[[[[[[[' * 9, "\\\\\\" + '"[,1' * 9]
)
def test_what_stands_in_strings_does_not_count(filler: str) -> None:
    """Brackets, digits and commas there are text, whatever escapes surround them."""
    refuse_outsized(f'{{"a":"{filler}"}}'.encode())


@pytest.mark.parametrize("depth", [MAX_DEPTH, 200])
def test_a_short_body_is_held_to_the_limits_too(depth: int) -> None:
    """Depth takes little room."""
    error = refused(json.dumps(GOOD)[:-1].encode() + b', "note": ' + b"[" * depth + b"]" * depth + b"}")
    assert f"more than {MAX_DEPTH} levels" in error.detail


@given(st.binary(max_size=300) | st.text(alphabet='[]{}",\\1 ', max_size=300).map(str.encode))
def test_any_bytes_are_judged(body: bytes) -> None:
    """Never another exception than that one."""
    with suppress(MalformedBody):
        refuse_outsized(body)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(alphabet='a"\\[{,1'),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\[{,1'), inner, max_size=3),
        max_leaves=20,
    )
)
def test_what_json_says_of_depth_holds(value: object) -> None:
    """The depth that is found in the bytes is that of the value."""

    def depth(part: object) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    body = json.dumps(value).encode()
    if depth(value) > MAX_DEPTH:
        with pytest.raises(MalformedBody):
            refuse_outsized(body)
    else:
        refuse_outsized(body)
