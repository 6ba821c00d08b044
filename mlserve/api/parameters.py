"""Which query parameters a request may carry: none that the endpoint does not know, and none that contradict."""

from collections.abc import Collection
from typing import ClassVar, Final
from urllib.parse import parse_qsl

from mlserve.errors import ErrorCode, FieldError, MlserveError

SHOWN_CHARACTERS: Final = 64
"""Of a wrong name or value that an error repeats."""


class InvalidParameter(MlserveError):
    """`errors` names the parameter."""

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_PARAMETER


def read_parameters(
    query: str, *, single: Collection[str] = (), repeatable: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Names and values in their order, empty values kept.

    Raises `InvalidParameter` for a name in neither collection, and for one of `single` that stands there twice, even
    with the same value: whoever says both true and false is not understood.
    """
    seen: set[str] = set()
    parameters = parse_qsl(query, keep_blank_values=True, max_num_fields=None)
    for name, _value in parameters:
        if name not in single and name not in repeatable:
            allowed = ", ".join((*repeatable, *single)) or "none here"
            raise InvalidParameter(
                f"Unknown query parameter {shown(name)}; allowed: {allowed}.",
                errors=[FieldError(parameter=name[:SHOWN_CHARACTERS], detail=f"unknown; allowed: {allowed}")],
            )
        if name in seen and name in single:
            raise InvalidParameter(
                f"{name} stands there more than once; give it once.",
                errors=[FieldError(parameter=name, detail="stands there more than once")],
            )
        seen.add(name)
    return parameters


def shown(text: str) -> str:
    """Quoted, and cut if it is long."""
    return repr(text) if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]!r}…"
