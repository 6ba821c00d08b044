"""From bytes to one flat object of a request, or to a list of everything that is wrong with it.

The good case costs a few microseconds: one typed pass of msgspec. It stops at the first mistake, so a body that it
refuses is read a second time, field by field, with the same decoders, to report all of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from mlserve.api.bodies import MalformedBody
from mlserve.api.json_limits import MAX_VALUES, ORDINARY_BYTES, JsonText, mark_in, without_marks
from mlserve.api.parameters import SHOWN_CHARACTERS
from mlserve.errors import ErrorCode, FieldError, MlserveError
from predictions.api.json_words import in_json_words

_MAX_ERRORS: Final = 50
Rule = Callable[[Any, datetime], str | None]
"""What is wrong with a field's decoded value at this moment, beyond its type; None if nothing is."""
_T = TypeVar("_T", bound=msgspec.Struct)


class InvalidFields(MlserveError):
    """JSON, but not what was asked for; `errors` has a JSON pointer for every wrong field."""

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_FIELDS


class RequestShape(Generic[_T]):
    """How one struct is decoded. Its fields are texts, numbers, booleans and moments: no containers.

    null in a field that may be left out is as if it were left out.
    """

    def __init__(self, type_: type[_T], *, rules: Mapping[str, Rule]) -> None:
        fields = msgspec.structs.fields(type_)
        types = {field.name: field.type if field.required else field.type | None for field in fields}
        # Optional fields are UNSET where absent: only so can the fields that were given be counted.
        given = msgspec.defstruct(
            f"_Given{type_.__name__}",
            [
                (field.name, field.type) if field.required else (field.name, types[field.name] | UnsetType, UNSET)
                for field in fields
            ],
            forbid_unknown_fields=True,
        )
        self.names = tuple(field.name for field in fields)
        self.descriptions: dict[str, str] = {
            name: branch["description"]
            for name, schema in msgspec.json.schema_components([type_])[1][type_.__name__]["properties"].items()
            for branch in schema.get("anyOf", [schema])  # what may be null is one of two
            if "description" in branch
        }
        self._type = type_
        self._rules = tuple(rules.items())
        self._rule_of = dict(rules)
        self._required = frozenset(field.name for field in fields if field.required)
        self._decode_given = msgspec.json.Decoder(given).decode
        self._decode_field: dict[str, Callable[[bytes | msgspec.Raw], Any]] = {
            name: msgspec.json.Decoder(type_of_field).decode for name, type_of_field in types.items()
        }

    def decode(self, body: bytes, *, now: datetime) -> _T:
        """The request in `body`. Raises `MalformedBody` if it is not JSON, `InvalidFields` if it is wrong."""
        text = JsonText(body) if len(body) > ORDINARY_BYTES else None
        if text is not None and text.refusal is not None:
            raise self._explain(text, now=now)
        try:
            wire = self._decode_given(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._explain(text or JsonText(body), now=now) from None
        given = {name: value for name in self.names if (value := getattr(wire, name)) is not UNSET}
        # Where no value holds a comma, commas count the members: one more than there are names may be a duplicate.
        if body.count(b",") + 1 != len(given) and len(members_of(body)) != len(given):
            raise self._explain(JsonText(body), now=now)
        for name, rule in self._rules:
            if (value := given.get(name)) is not None and rule(value, now):
                raise self._explain(JsonText(body), now=now)
        # abs: no number is below 0, and -0 is 0 in a spelling of its own.
        return self._type(
            **{
                name: abs(value) if value.__class__ is float else value
                for name, value in given.items()
                if value is not None
            }
        )

    def _explain(self, text: JsonText, *, now: datetime) -> MlserveError:
        try:
            marked = _marked(text)
            members = members_of(marked)
            raw = _decode_raw_object(marked)
        except MalformedBody as error:
            return error
        except UnicodeDecodeError as error:
            return MalformedBody(f"The body is not UTF-8: byte {error.start} starts no character.")
        except RecursionError:
            return MalformedBody("The body is nested too deeply.")
        except msgspec.ValidationError:
            if (why := mark_in(marked)) is not None:
                return MalformedBody(f"The body is not JSON: {why}.")
            return InvalidFields(
                "The body is not a JSON object.", errors=[FieldError(pointer="", detail="expected an object")]
            )
        except ValueError as error:
            return MalformedBody(f"The body is not JSON: {error}.")
        duplicates = sorted(name for name, times in Counter(members).items() if times > 1)
        if duplicates:
            errors = [FieldError(pointer=_pointer(name), detail="stands there more than once") for name in duplicates]
            return MalformedBody("The body has duplicate keys.", errors=errors[:_MAX_ERRORS])
        if unreadable := {name: why for name, value in raw.items() if (why := mark_in(bytes(value))) is not None}:
            errors = [FieldError(pointer=_pointer(name), detail=why) for name, why in unreadable.items()]
            detail = text.refusal.detail if text.refusal else f"The body is not JSON: {errors[0].detail}."
            return MalformedBody(detail, errors=errors[:_MAX_ERRORS])
        errors = self._field_errors(raw, now=now)
        count = "One field is" if len(errors) == 1 else f"{len(errors)} fields are"
        return InvalidFields(f"{count} wrong.", errors=errors[:_MAX_ERRORS])

    def _field_errors(self, raw: dict[str, msgspec.Raw], *, now: datetime) -> list[FieldError]:
        errors = []
        for name in self.names:
            if name in raw:
                detail = self._judge(name, raw[name], now=now)
            else:
                detail = f"missing; {self.descriptions[name]}" if name in self._required else None
            if detail is not None:
                errors.append(FieldError(pointer=_pointer(name), detail=detail))
        known = f"unknown field; known: {', '.join(self.names)}"
        errors.extend(FieldError(pointer=_pointer(name), detail=known) for name in raw if name not in self.names)
        return errors

    def _judge(self, name: str, value: msgspec.Raw, *, now: datetime) -> str | None:
        """What is wrong with this field, judged by the decoder that the good case uses; None if nothing is."""
        try:
            decoded = self._decode_field[name](value)
        except UnicodeDecodeError:
            return "not UTF-8"
        except (msgspec.DecodeError, RecursionError) as error:
            return f"{_shown(value)} is not allowed: {_reason(error, value)}; {self.descriptions[name]}"
        rule = self._rule_of.get(name)
        wrong = rule(decoded, now) if rule is not None and decoded is not None else None
        return wrong and f"{_shown(value)} is {wrong}"


_decode_raw_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _marked(text: JsonText) -> bytes:
    """The body with marks for what cannot be read. Raises `MalformedBody` for too many members."""
    if text.too_many_members:
        raise MalformedBody(f"The body has more than {MAX_VALUES:,} values.")
    return text.marked_flat() if text.too_many_values else text.marked()


def _reason(error: Exception, value: msgspec.Raw) -> str:
    if ":60" in _shown(value) and "RFC3339" in str(error):
        return "seconds go to 59, and a leap second is sent as the second that follows"
    return in_json_words(error)


def members_of(body: bytes) -> list[str]:
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


def _pointer(name: str) -> str:
    return "/" + without_marks(name)[:SHOWN_CHARACTERS].replace("~", "~0").replace("/", "~1")


def _shown(value: msgspec.Raw) -> str:
    text = bytes(value).decode("utf-8", "replace")
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
