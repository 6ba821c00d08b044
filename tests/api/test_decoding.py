"""The decoder of score requests: what it takes, what it refuses, and with which words."""

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.api.bodies import MalformedBody
from mlserve.api.parameters import InvalidParameter
from mlserve.errors import MlserveError
from predictions.api.decoding import (
    InvalidFields,
    decode_labels,
    decode_score_batch,
    decode_score_options,
    decode_score_request,
    decode_transaction_id,
)
from predictions.messages import ScoreOptions, ScoreRequest

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
GOOD = {
    "transaction_id": "t-1",
    "occurred_at": "2026-11-23T11:59:00Z",
    "customer_id": "c.1",
    "merchant_id": "m:1",
    "amount": 12.3456,
}


def decode(body: bytes) -> ScoreRequest:
    return decode_score_request(body, now=NOW)


def with_member(text: str) -> bytes:
    return (json.dumps(GOOD)[:-1] + f", {text}}}").encode()


def pointers(error: MlserveError) -> list[str | None]:
    return [each.pointer for each in error.errors]


def test_all_fields_arrive() -> None:
    """Optional fields are taken if given, and have their defaults if not."""
    assert decode(json.dumps(GOOD).encode()) == ScoreRequest(
        **{**GOOD, "occurred_at": datetime(2026, 11, 23, 11, 59, tzinfo=UTC)}  # type: ignore[arg-type]
    )
    full = decode(json.dumps({**GOOD, "currency": "USD", "max_age_s": 0}).encode())
    assert (full.currency, full.max_age_s) == ("USD", 0.0)
    assert decode(with_member('"max_age_s": null')).max_age_s is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transaction_id", ""),
        ("transaction_id", "x" * 65),
        ("transaction_id", "a b"),
        ("transaction_id", "a,b"),
        ("transaction_id", ".."),
        ("customer_id", "."),
        ("transaction_id", "line\n"),
        ("transaction_id", "nul\x00"),
        ("transaction_id", 7),
        ("customer_id", None),
        ("merchant_id", {"nested": {"id": 1}}),
        ("merchant_id", ["m"]),
        ("occurred_at", "2026-11-23T11:59:00"),
        ("occurred_at", "yesterday"),
        ("occurred_at", 1_700_000_000),
        ("occurred_at", "1969-12-31T23:59:59Z"),
        ("occurred_at", "0001-01-01T00:00:00+14:00"),
        ("occurred_at", "9999-12-31T23:59:59-14:00"),
        ("occurred_at", "2026-11-24T12:00:01Z"),
        ("amount", -0.01),
        ("amount", 1_000_000_000.5),
        ("amount", 10**400),
        ("amount", "12.50"),
        ("amount", True),
        ("amount", 0.12345),
        ("amount", 0.1 + 0.2),
        ("currency", "eur"),
        ("currency", "EUR\n"),
        ("max_age_s", -1),
        ("max_age_s", "0"),
    ],
)
def test_a_wrong_value_is_named_by_its_pointer(name: str, value: object) -> None:
    """One wrong field gives one error, with its JSON pointer."""
    with pytest.raises(InvalidFields) as caught:
        decode(json.dumps({**GOOD, name: value}).encode())
    assert pointers(caught.value) == [f"/{name}"]
    assert caught.value.errors[0].detail.rstrip("; ") == caught.value.errors[0].detail


def test_a_wrong_value_comes_with_what_is_allowed() -> None:
    """Also where the field may be left out."""
    with pytest.raises(InvalidFields) as caught:
        decode(json.dumps({**GOOD, "max_age_s": -1}).encode())
    assert caught.value.errors[0].detail.endswith("; seconds, 0 to 31,536,000 (a year)")


@pytest.mark.parametrize("name", ["..a", "a..", ".:", "-", "a.b"])
def test_dots_may_stand_beside_other_characters(name: str) -> None:
    """Only a path of nothing but dots means something else to clients."""
    assert decode(json.dumps({**GOOD, "transaction_id": name}).encode()).transaction_id == name


def test_every_wrong_field_is_named() -> None:
    """Wrong, missing and unknown fields are reported together."""
    body = {"amount": "a lot", "currency": "euro", "merchant_id": "m", "customer": "c", "a/b~c": 1}
    with pytest.raises(InvalidFields) as caught:
        decode(json.dumps(body).encode())
    assert pointers(caught.value) == [
        "/transaction_id",
        "/occurred_at",
        "/customer_id",
        "/amount",
        "/currency",
        "/customer",
        "/a~1b~0c",
    ]
    assert "known: transaction_id" in caught.value.errors[-1].detail


def test_a_moment_up_to_a_day_ahead_is_taken() -> None:
    """Clients' clocks may run ahead."""
    ahead = (NOW + timedelta(days=1)).isoformat()
    assert decode(json.dumps({**GOOD, "occurred_at": ahead}).encode()).occurred_at == NOW + timedelta(days=1)


@pytest.mark.parametrize("member", ['"amount": 2', '"\\u0061mount": 2', '"currency": "EUR", "currency": "USD"'])
def test_duplicate_keys_are_refused(member: str) -> None:
    """However they are spelled, and although each value would be good."""
    with pytest.raises(MalformedBody, match="duplicate"):
        decode(with_member(member))


@pytest.mark.parametrize("value", ["currency", "max_age_s", "amount"])
def test_a_value_that_looks_like_a_key_is_no_duplicate(value: str) -> None:
    """Ids may be called like fields, and that does not hide a duplicate either."""
    body = {**GOOD, "customer_id": value}
    assert decode(json.dumps(body).encode()).customer_id == value
    with pytest.raises(MalformedBody, match="duplicate"):
        decode((json.dumps(body)[:-1] + ', "amount": 1}').encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        json.dumps(GOOD).encode() + b"\x00",
        json.dumps(GOOD).encode("utf-16"),
        with_member('"max_age_s": NaN'),
        with_member('"max_age_s": -Infinity'),
        with_member('"note": "\\ud800"'),
        with_member('"max_age_s": 01'),
        with_member('"note": ' + "[" * 100_000 + "]" * 100_000),
        with_member('"note": ' + '{"a":' * 50_000 + "1" + "}" * 50_000),
        b'{"transaction_id": "\xc3\x28"}',
    ],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    """Broken syntax, encodings, numbers that JSON does not have, and nesting without end."""
    with pytest.raises(MalformedBody):
        decode(body)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "-Infinity",
        "Infinity",
        '"\\ud800"',
        '{"a": [NaN]}',
        "1" * 1_001,
        "[" * 17 + "]" * 17,
        "[" * 1_100 + "]" * 1_100,
    ],
)
def test_what_no_parser_takes_is_named_by_its_pointer(name: str, value: str) -> None:
    """It is no JSON, or beyond a limit, and nevertheless the client learns which field it is."""
    body = {**GOOD, name: "?"}
    with pytest.raises(MalformedBody) as caught:
        decode(json.dumps(body).replace('"?"', value).encode())
    assert pointers(caught.value) == [f"/{name}"]


@pytest.mark.parametrize(
    "bad",
    [
        json.dumps({**GOOD, "amount": {"value": [[1]] * 300}}),
        json.dumps({**GOOD, "note": 1}),
        json.dumps({**GOOD, **{f"k{number}": 1 for number in range(1_500)}}),
        json.dumps({**GOOD, "amount": float("nan")}),
        json.dumps({**GOOD, "amount": [0] * 2_000}),
        json.dumps({**GOOD, "customer_id": "\ud800"}),
        json.dumps({**GOOD, "amount": "?"}).replace('"?"', "1e400"),
        json.dumps({**GOOD, "amount": "?"}).replace('"?"', "9" * 5_000),
        json.dumps({**GOOD, "amount": "?"}).replace('"?"', "[" * 5_000 + "]" * 5_000),
        '{"amount": 1, "amount": 2}',
        "null",
        "NaN",
    ],
)
def test_one_bad_item_harms_no_other(bad: str) -> None:
    """Limits are each item's own; what is no JSON is the error of the item that holds it."""
    good = json.dumps(GOOD)
    items = decode_score_batch(f'{{"transactions": [{", ".join([good] * 99 + [bad])}]}}'.encode(), now=NOW)
    assert len(items) == 100 and items[:99] == [decode(good.encode())] * 99
    refused = items[99]
    assert isinstance(refused, InvalidFields | MalformedBody)
    assert all((error.pointer or "").startswith("/transactions/99") for error in refused.errors)


def test_a_thousand_labels_with_a_field_too_many_are_judged_one_by_one() -> None:
    """Each is refused for its field, and no limit of the whole is in the way."""
    labels = [{"transaction_id": f"t-{number}", "is_fraud": True, "note": "?"} for number in range(1_000)]
    taken = decode_labels(json.dumps({"labels": labels}).encode(), now=NOW)
    assert [pointers(each) for each in taken if isinstance(each, InvalidFields)] == [
        [f"/labels/{number}/note"] for number in range(1_000)
    ]


def test_null_is_as_if_an_optional_field_were_left_out() -> None:
    """In every field that may be left out."""
    assert decode(json.dumps({**GOOD, "currency": None, "max_age_s": None}).encode()) == decode(
        json.dumps(GOOD).encode()
    )


def test_zero_has_one_spelling() -> None:
    """-0 and 0 are the same amount, so that a repetition is no conflict."""
    assert str(decode(json.dumps({**GOOD, "amount": -0.0}).encode()).amount) == "0.0"


@pytest.mark.parametrize("zone", ["Z", "z", "+00:00", "+0000", "-00:00"])
def test_offsets_may_leave_out_their_colon(zone: str) -> None:
    """As many languages print them."""
    assert decode(json.dumps({**GOOD, "occurred_at": f"2026-01-05T14:30:00{zone}"}).encode()).occurred_at == datetime(
        2026, 1, 5, 14, 30, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"amount": "12"}, "expected a number, got a string"),
        ({"amount": True}, "expected a number, got a boolean"),
        ({"customer_id": 5}, "expected a string, got a number"),
        ({"customer_id": [1]}, "expected a string, got an array"),
        ({"max_age_s": {}}, "expected a number or null, got an object"),
        ({"occurred_at": 1}, "expected a time, got a number"),
        ({"occurred_at": "2025-12-31T23:59:60Z"}, "seconds go to 59"),
    ],
)
def test_errors_speak_of_json(member: dict[str, object], words: str) -> None:
    """Of its types, and not of those of the language that reads it."""
    with pytest.raises(InvalidFields, match="One field is wrong") as caught:
        decode(json.dumps({**GOOD, **member}).encode())
    detail = caught.value.errors[0].detail
    assert words in detail and "`" not in detail


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true"])
def test_json_that_is_no_object_is_invalid(body: bytes) -> None:
    """The pointer of the whole document is the empty one."""
    with pytest.raises(InvalidFields) as caught:
        decode(body)
    assert pointers(caught.value) == [""]


def test_errors_repeat_little_of_the_body() -> None:
    """A long name or value is cut, and the number of errors is bounded."""
    body = {**GOOD, "amount": "9" * 10_000, **{f"{number}-" + "x" * 1000: 1 for number in range(100)}}
    with pytest.raises(InvalidFields) as caught:
        decode(json.dumps(body).encode())
    assert len(caught.value.errors) == 50
    assert all(len(error.detail) + len(error.pointer or "") < 400 for error in caught.value.errors)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
requests = st.fixed_dictionaries({}, optional={name: json_values | st.just(value) for name, value in GOOD.items()})


@given(st.binary() | st.binary().map(lambda noise: json.dumps(GOOD).encode()[:-1] + noise) | json_values.map(
    lambda value: json.dumps(value).encode()) | requests.map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_give_a_request_or_a_clear_refusal(body: bytes) -> None:
    """Never another exception, and a refusal of fields always names at least one."""
    try:
        decoded = decode(body)
    except InvalidFields as error:
        assert error.errors
    except MalformedBody:
        pass
    else:
        assert msgspec.convert(msgspec.to_builtins(decoded), ScoreRequest) == decoded


@given(st.floats(min_value=0, max_value=1e9))
def test_an_amount_is_taken_if_four_decimals_write_it(amount: float) -> None:
    """And refused otherwise, whatever binary floats make of it."""
    body = json.dumps({**GOOD, "amount": amount}).encode()
    if float(f"{amount:.4f}") == amount:
        assert decode(body).amount == amount
    else:
        with pytest.raises(InvalidFields):
            decode(body)


def test_options() -> None:
    """`include` may be one list, repeated or empty."""
    assert decode_score_options("") == decode_score_options("include=") == ScoreOptions()
    assert decode_score_options("include=features,trace&dry_run=true") == ScoreOptions(
        features=True, trace=True, dry_run=True
    )
    assert decode_score_options("include=reasons&include=trace&dry_run=false") == ScoreOptions(reasons=True, trace=True)


@pytest.mark.parametrize(
    ("query", "parameter", "allowed"),
    [
        ("include=feature", "include", "features, trace, reasons"),
        ("include=features,", "include", "features, trace, reasons"),
        ("dry_run=1", "dry_run", "true, false"),
        ("dry_run=true&dry_run=false", "dry_run", "once"),
        ("dry_run=true&dry_run=true", "dry_run", "once"),
        ("dry_run", "dry_run", "true, false"),
        ("verbose=true", "verbose", "include, dry_run"),
        ("%ff=%00", "\ufffd", "include, dry_run"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(query: str, parameter: str, allowed: str) -> None:
    """A misspelled option never passes silently."""
    with pytest.raises(InvalidParameter) as caught:
        decode_score_options(query)
    assert caught.value.errors[0].parameter == parameter
    assert allowed in caught.value.detail


@given(st.text())
def test_any_query_gives_options_or_a_clear_refusal(query: str) -> None:
    """Never another exception."""
    try:
        decode_score_options(query)
    except InvalidParameter as error:
        assert error.errors


@pytest.mark.parametrize("text", ["", "a b", "x" * 65, "nul\x00", "é", ".", "..", "...", "a\n"])
def test_an_impossible_transaction_id_is_refused(text: str) -> None:
    """Before it reaches the database."""
    with pytest.raises(InvalidParameter):
        decode_transaction_id(text)
