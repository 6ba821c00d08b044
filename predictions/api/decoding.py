"""From the bytes of a request to a `ScoreRequest`, or to a list of everything that is wrong with it.

The good case costs a few microseconds: one typed pass of msgspec. It stops at the first mistake, so a body that it
refuses is read a second time, field by field, with the same decoders, to report all of them.
"""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, Union

import msgspec
from msgspec import UNSET, UnsetType

from mlserve.api.bodies import MalformedBody
from mlserve.api.json_limits import ORDINARY_BYTES, refuse_outsized
from mlserve.api.parameters import SHOWN_CHARACTERS, InvalidParameter, read_parameters, shown
from mlserve.errors import ErrorCode, FieldError, MlserveError
from predictions.messages import ScoreOptions, ScoreRequest, TransactionId

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_AHEAD: Final = timedelta(days=1)
"""Clocks of clients and time zones may be wrong by this much."""
DECIMALS: Final = 4
"""What the ledger keeps of an amount."""
_MAX_ERRORS: Final = 50


class InvalidFields(MlserveError):
    """The body is JSON, but not a `ScoreRequest`; `errors` has a JSON pointer for every wrong field."""

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_FIELDS


_FIELDS: Final = msgspec.structs.fields(ScoreRequest)
# Optional fields are UNSET where absent: only so can the fields that were given be counted.
_GivenFields = msgspec.defstruct(
    "_GivenFields",
    [
        (field.name, field.type) if field.required else (field.name, Union[field.type, UnsetType], UNSET)  # noqa: UP007
        for field in _FIELDS
    ],
    forbid_unknown_fields=True,
)
_decode_given: Final = msgspec.json.Decoder(_GivenFields).decode
_decode_field: Final[dict[str, Callable[[bytes | msgspec.Raw], Any]]] = {
    field.name: msgspec.json.Decoder(field.type).decode for field in _FIELDS
}
_decode_raw_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NAMES: Final = tuple(field.name for field in _FIELDS)
_DESCRIPTIONS: Final[dict[str, str]] = {
    name: branch["description"]
    for name, schema in msgspec.json.schema_components([ScoreRequest])[1]["ScoreRequest"]["properties"].items()
    for branch in schema.get("anyOf", [schema])  # what may be null is one of two
    if "description" in branch
}


def decode_score_request(body: bytes, *, now: datetime) -> ScoreRequest:
    """The request in `body`. Raises `MalformedBody` if it is not JSON, `InvalidFields` if it is wrong."""
    if len(body) > ORDINARY_BYTES:
        refuse_outsized(body)
    try:
        wire = _decode_given(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _explain(body, now=now) from None
    given = {name: value for name in _NAMES if (value := getattr(wire, name)) is not UNSET}
    # No valid value holds a comma, so commas count the members: one more than there are names is a duplicate.
    if body.count(b",") + 1 != len(given) or _wrong_moment(given["occurred_at"], now) or _wrong_amount(given["amount"]):
        raise _explain(body, now=now)
    return ScoreRequest(**given)


_NO_OPTIONS: Final = ScoreOptions()
_INCLUDABLE: Final = ("features", "trace", "reasons")
_BOOLEANS: Final = {"true": True, "false": False}


def decode_score_options(query: str) -> ScoreOptions:
    """The options in a query string; an empty `include` asks for nothing more.

    Raises `InvalidParameter` that names what is wrong and what is allowed.
    """
    if not query:
        return _NO_OPTIONS
    options: dict[str, bool] = {}
    for name, value in read_parameters(query, single=("dry_run",), repeatable=("include",)):
        if name == "include":
            for part in value.split(",") if value else ():
                if part not in _INCLUDABLE:
                    raise _bad_parameter("include", part, f"any of {', '.join(_INCLUDABLE)}, separated by commas")
                options[part] = True
        elif value in _BOOLEANS:
            options["dry_run"] = _BOOLEANS[value]
        else:
            raise _bad_parameter("dry_run", value, "true, false")
    return ScoreOptions(**options)


def decode_transaction_id(text: str) -> str:
    """The id in a path. Raises `InvalidParameter`."""
    try:
        return msgspec.convert(text, TransactionId)
    except msgspec.ValidationError as error:
        raise _bad_parameter("transaction_id", text, _DESCRIPTIONS["transaction_id"]) from error


def _bad_parameter(name: str, value: str, allowed: str) -> InvalidParameter:
    detail = f"{shown(value)} is not allowed; allowed: {allowed}"
    return InvalidParameter(f"{name}: {detail}.", errors=[FieldError(parameter=name, detail=detail)])


def _explain(body: bytes, *, now: datetime) -> MlserveError:
    try:
        if len(body) <= ORDINARY_BYTES:
            refuse_outsized(body)  # a longer one was looked at before
        members = _members(body)
        raw = _decode_raw_object(body)
    except MalformedBody as error:
        return error
    except UnicodeDecodeError as error:
        return MalformedBody(f"The body is not UTF-8: byte {error.start} starts no character.")
    except RecursionError:
        return MalformedBody("The body is nested too deeply.")
    except msgspec.ValidationError:
        return InvalidFields(
            "The body is not a JSON object.", errors=[FieldError(pointer="", detail="expected an object")]
        )
    except ValueError as error:
        return MalformedBody(f"The body is not JSON: {error}.")
    duplicates = sorted(name for name, times in Counter(members).items() if times > 1)
    if duplicates:
        errors = [FieldError(pointer=_pointer(name), detail="stands there more than once") for name in duplicates]
        return MalformedBody("The body has duplicate keys.", errors=errors[:_MAX_ERRORS])
    errors = _field_errors(raw, now=now)
    count = "One field is" if len(errors) == 1 else f"{len(errors)} fields are"
    return InvalidFields(f"{count} wrong.", errors=errors[:_MAX_ERRORS])


def _members(body: bytes) -> list[str]:
    """The names of the outermost object, duplicates kept. Raises ValueError for what is not JSON."""
    found: list[str] = []

    def keep_names(pairs: list[tuple[str, Any]]) -> None:
        found[:] = [name for name, _ in pairs]  # called for inner objects first

    json.loads(
        body.decode(), object_pairs_hook=keep_names, parse_int=str, parse_float=str, parse_constant=_refuse_constant
    )
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _field_errors(raw: dict[str, msgspec.Raw], *, now: datetime) -> list[FieldError]:
    errors = []
    for field in _FIELDS:
        if field.name in raw:
            detail = _judge(field.name, raw[field.name], now=now)
        else:
            detail = f"missing; {_DESCRIPTIONS[field.name]}" if field.required else None
        if detail is not None:
            errors.append(FieldError(pointer=_pointer(field.name), detail=detail))
    known = f"unknown field; known: {', '.join(_NAMES)}"
    errors.extend(FieldError(pointer=_pointer(name), detail=known) for name in raw if name not in _decode_field)
    return errors


def _judge(name: str, value: msgspec.Raw, *, now: datetime) -> str | None:
    """What is wrong with this field, judged by the decoder that the good case uses; None if nothing is."""
    try:
        decoded = _decode_field[name](value)
    except UnicodeDecodeError:
        return "not UTF-8"
    except (msgspec.DecodeError, RecursionError) as error:
        reason = str(error).partition(" - at `$")[0].partition(" matching regex")[0]
        return f"{_raw(value)} is not allowed: {reason}; {_DESCRIPTIONS[name]}"
    wrong = None
    if name == "occurred_at":
        wrong = _wrong_moment(decoded, now)
    elif name == "amount":
        wrong = _wrong_amount(decoded)
    return wrong and f"{_raw(value)} is {wrong}"


def _wrong_moment(moment: datetime, now: datetime) -> str | None:
    if moment < EARLIEST:
        return "before 1970"
    if moment - now > LATEST_AHEAD:
        return f"more than a day ahead of the server's time, {now:%Y-%m-%dT%H:%M:%SZ}"
    return None


def _wrong_amount(amount: float) -> str | None:
    return None if round(amount, DECIMALS) == amount else f"too exact: at most {DECIMALS} decimals"


def _pointer(name: str) -> str:
    return "/" + name[:SHOWN_CHARACTERS].replace("~", "~0").replace("/", "~1")


def _raw(value: msgspec.Raw) -> str:
    text = bytes(value).decode("utf-8", "replace")
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
