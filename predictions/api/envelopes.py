"""A body that is a list of objects, each of which is judged by itself: `{"transactions": [...]}`.

Only what makes the list unreadable refuses the whole. A wrong object leaves its error in its place, also one that is
no JSON (NaN) or beyond a limit: limits of depth, values and digits are each object's own.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from mlserve.api.bodies import BodyTooLarge, MalformedBody
from mlserve.api.json_limits import MAX_DEPTH, JsonText
from mlserve.errors import FieldError, MlserveError
from predictions.api.json_words import in_json_words
from predictions.api.shapes import RequestShape

_LEVELS: Final = 2
"""Above an object of the list: the list and what holds it."""
_MAX_ERRORS_OF_ITEM: Final = 10
"""So that the answer to many wrong objects is not much longer than they are."""
_T = TypeVar("_T", bound=msgspec.Struct)
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Envelope:
    """An object with one member, a list of 1 to `most` objects."""

    def __init__(self, member: str, *, most: int) -> None:
        self.member = member
        self.most = most
        envelope = msgspec.defstruct("_Envelope", [(member, msgspec.Raw)], forbid_unknown_fields=True)
        self._decode: Any = msgspec.json.Decoder(envelope).decode

    def split(self, body: bytes) -> list[bytes]:
        """The text of each object, not looked at. Raises `MalformedBody`, or `BodyTooLarge` beyond `most`."""
        try:
            items = self._items(body)
        except MalformedBody:
            marked = JsonText(body).marked(max_depth=MAX_DEPTH + _LEVELS)
            if marked == body:
                raise
            items = self._items(marked)
        return [bytes(item) for item in items]

    def decode(self, items: Sequence[bytes], shape: RequestShape[_T], *, now: datetime) -> list[_T | MlserveError]:
        """Each object in its place, or what is wrong with it. Pointers of errors start at the body's own root."""
        decoded: list[_T | MlserveError] = []
        for number, item in enumerate(items):
            try:
                decoded.append(shape.decode(item, now=now))
            except MlserveError as error:
                decoded.append(self._placed(error, number))
        return decoded

    def _items(self, body: bytes) -> list[msgspec.Raw]:
        try:
            whole: msgspec.Raw = getattr(self._decode(body), self.member)
            items = _decode_list(whole)
        except msgspec.ValidationError as error:
            raise MalformedBody(f"{self._wanted()} Here: {in_json_words(error)}.") from None
        except UnicodeDecodeError:
            raise MalformedBody("The body is not UTF-8.") from None
        except RecursionError:
            raise MalformedBody("The body is nested too deeply.") from None
        except msgspec.DecodeError as error:
            raise MalformedBody(f"The body is not JSON: {in_json_words(error)}.") from None
        # Whatever stands around the list has one colon, or the list stands there twice.
        if body.replace(bytes(whole), b"", 1).count(b":") != 1:
            twice = FieldError(pointer=f"/{self.member}", detail="stands there more than once")
            raise MalformedBody("The body has duplicate keys.", errors=[twice])
        if not items:
            raise MalformedBody(f"{self._wanted()} The list is empty.")
        if len(items) > self.most:
            raise BodyTooLarge(f"The list {self.member} has {len(items)} objects; at most {self.most} are taken.")
        return items

    def _wanted(self) -> str:
        return f"The body must be an object with one member, `{self.member}`, a list of 1 to {self.most} objects."

    def _placed(self, error: MlserveError, number: int) -> MlserveError:
        root = f"/{self.member}/{number}"
        errors = [
            msgspec.structs.replace(each, pointer=root + each.pointer) if each.pointer is not None else each
            for each in error.errors[:_MAX_ERRORS_OF_ITEM]
        ]
        return type(error)(error.detail, errors=errors)
