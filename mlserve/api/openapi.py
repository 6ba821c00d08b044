"""The OpenAPI document: schemas from the msgspec types that encode and decode, and the problems of each view."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse

from mlserve.api.data_version import HEADER, MOST_CHARACTERS
from mlserve.api.problems import CONTENT_TYPE, TYPE_PREFIX, Problem
from mlserve.errors import STATUS_OF, TITLE_OF, ErrorCode

_REF_TEMPLATE: Final = "#/components/schemas/{name}"
_components: dict[str, Any] = {}

ALWAYS: Final = (ErrorCode.MALFORMED_REQUEST, ErrorCode.NOT_ACCEPTABLE, ErrorCode.INTERNAL)
KEYED: Final = (
    *ALWAYS,
    ErrorCode.INVALID_PARAMETER,
    ErrorCode.UNAUTHENTICATED,
    ErrorCode.FORBIDDEN,
    ErrorCode.RATE_LIMITED,
    ErrorCode.SOURCE_UNAVAILABLE,
    ErrorCode.SOURCE_READ_ONLY,
    ErrorCode.SOURCE_CONTENTION,
    ErrorCode.OVERLOADED,
)
"""What any view behind an API key may answer."""

Responses = dict[tuple[int, str], OpenApiResponse]

VERSION_SENT: Final = OpenApiParameter(
    HEADER,
    {"type": "string", "maxLength": MOST_CHARACTERS},
    OpenApiParameter.HEADER,
    description=(
        "As earlier answers gave it; several are separated by commas. No value is then older than what those answers "
        "knew. 400 for one that this service has not given."
    ),
)
VERSION_ANSWERED: Final = OpenApiParameter(
    HEADER,
    {"type": "string"},
    OpenApiParameter.HEADER,
    response=[200],
    description="Opaque: names the versions that this answer knew, a recorded transaction's own included.",
)

LIMIT_HEADERS: Final[dict[str, Any]] = {
    "RateLimit": {
        "description": "To keys with a limit: units that are left (`r`), and the seconds until there is more (`t`).",
        "schema": {"type": "string", "pattern": r'^"key";r=\d+;t=\d+$'},
        "example": '"key";r=37;t=1',
    },
    "RateLimit-Policy": {
        "description": "To keys with a limit: most units at once (`q`), and the seconds that fill none up (`w`).",
        "schema": {"type": "string", "pattern": r'^"key";q=\d+;w=\d+$'},
        "example": '"key";q=50;w=5',
    },
    "Retry-After": {
        "description": "Seconds, where another try can help.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 2,
    },
}
_OF_ALL: Final[dict[str, Any]] = {
    "Request-Id": {
        "description": "Names the request in logs and errors: as it was sent, if it is 1 to 64 plain characters.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 64},
        "example": "019aa9a2-6c5e-7b1d-9a55-3f0f6d1c2b7e",
    },
    "Cache-Control": {
        "description": "Nothing of the API is to be kept by caches.",
        "schema": {"type": "string", "enum": ["no-store"]},
    },
}
_CHALLENGE: Final[dict[str, Any]] = {
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750).",
        "schema": {"type": "string"},
        "example": 'Bearer realm="mlserve"',
    },
}
SERVER_TIMING: Final = OpenApiParameter(
    "Server-Timing",
    {"type": "string"},
    OpenApiParameter.HEADER,
    response=[200],
    description="Milliseconds of `features`, `predict`, `decide` and, unless it was a dry run, `journal`.",
)
REPLAYED: Final = OpenApiParameter(
    "Idempotent-Replayed",
    {"type": "string", "enum": ["true"]},
    OpenApiParameter.HEADER,
    response=[200],
    description="Where the transaction was scored before: this is the answer of then. Left out otherwise.",
)
_UNCHARGED: Final = {
    str(int(STATUS_OF[code]))
    for code in (ErrorCode.UNAUTHENTICATED, ErrorCode.FORBIDDEN, ErrorCode.NOT_ACCEPTABLE, ErrorCode.INTERNAL)
}
"""Of answers that nothing was taken from a key for, and of those that Django makes."""
_UNAUTHENTICATED: Final = str(int(STATUS_OF[ErrorCode.UNAUTHENTICATED]))
_PASSING: Final = {str(int(STATUS_OF[code])) for code in (ErrorCode.RATE_LIMITED, ErrorCode.OVERLOADED)}


def schema_of(type_: Any) -> dict[str, Any]:
    """A JSON schema of a msgspec-encodable type, made of references; what they refer to joins the document."""
    (schema,), components = msgspec.json.schema_components([type_], ref_template=_REF_TEMPLATE)
    _components.update({name: _open_enum(component) for name, component in _in_ecma_dialect(components).items()})
    in_dialect: dict[str, Any] = _in_ecma_dialect(schema)
    return in_dialect


def answer(type_: Any, description: str, *, example: object, status: int = 200) -> Responses:
    """A successful answer of that type."""
    return {
        (status, "application/json"): OpenApiResponse(
            schema_of(type_),
            description,
            examples=[OpenApiExample(description, value=example, response_only=True, status_codes=[str(status)])],
        )
    }


def problems(*codes: ErrorCode) -> Responses:
    """The problem answers for these codes, one per status, every code an example."""
    by_status: dict[int, list[ErrorCode]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(int(STATUS_OF[code]), []).append(code)
    return {
        (status, CONTENT_TYPE): OpenApiResponse(
            schema_of(Problem),
            ". ".join(TITLE_OF[code] for code in same) + ".",
            examples=[_problem_example(code) for code in same],
        )
        for status, same in sorted(by_status.items())
    }


def add_components(result: dict[str, Any], generator: object, request: object, public: bool) -> dict[str, Any]:
    """drf-spectacular's post-processing hook.

    Adds what `schema_of` collected, that no body may be left out, and which answers say when to come again.
    """
    for path in result["paths"].values():
        for operation in path.values():
            if "requestBody" in operation:
                operation["requestBody"]["required"] = True
            _describe_limits(operation["responses"])
    result.setdefault("components", {})["headers"] = {**LIMIT_HEADERS, **_OF_ALL, **_CHALLENGE}
    schemas: dict[str, Any] = result.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(_components)
    result["components"]["schemas"] = dict(sorted(schemas.items()))
    return result


def _describe_limits(responses: dict[str, Any]) -> None:
    """Every answer after a key was charged says what the key has left; the refusals that pass say when."""
    keyed = str(int(STATUS_OF[ErrorCode.RATE_LIMITED])) in responses
    for status, response in responses.items():
        names = [name for name in ("RateLimit", "RateLimit-Policy") if keyed and status not in _UNCHARGED]
        if status in _PASSING:
            names.append("Retry-After")
        if status == _UNAUTHENTICATED:
            names += _CHALLENGE
        headers = response.setdefault("headers", {})
        headers.update({name: {"$ref": f"#/components/headers/{name}"} for name in [*names, *_OF_ALL]})


def request_body(type_: Any) -> Mapping[str, Any]:
    """The `request` of `extend_schema` for a JSON body of that type."""
    return {"application/json": schema_of(type_)}


def _open_enum(component: dict[str, Any]) -> dict[str, Any]:
    """Answers may get new codes and outcomes: a client that was generated from the document must not fail on one.

    What requests may say is no component of its own, and stays closed.
    """
    if "enum" not in component:
        return component
    known = {key: value for key, value in component.items() if key not in ("title", "description")}
    about: dict[str, Any] = {key: value for key, value in component.items() if key not in known}
    return {**about, "anyOf": [known, {"type": "string", "description": "New values may come."}]}


def _in_ecma_dialect(schema: Any) -> Any:
    r"""The same schema with patterns as JSON Schema wants them: `$` there means only the end, and `\Z` a letter."""
    match schema:
        case dict():
            same = {name: _in_ecma_dialect(value) for name, value in schema.items()}
            if isinstance(pattern := same.get("pattern"), str):
                same["pattern"] = pattern.replace(r"\Z", "$")
            if same.pop("nullable", False) is True:  # as OpenAPI 3.1 says it
                same["type"] = [same["type"], "null"]
            return same
        case list():
            return [_in_ecma_dialect(value) for value in schema]
    return schema


def _problem_example(code: ErrorCode) -> OpenApiExample:
    status = int(STATUS_OF[code])
    value = {
        "type": f"{TYPE_PREFIX}{code}",
        "title": TITLE_OF[code],
        "status": status,
        "detail": "What exactly is wrong, and how to mend it.",
        "code": str(code),
        "request_id": "019aa9a2-6c5e-7b1d-9a55-3f0f6d1c2b7e",
    }
    return OpenApiExample(
        str(code), value=value, response_only=True, status_codes=[str(status)], media_type=CONTENT_TYPE
    )


class BearerKeyScheme(OpenApiAuthenticationExtension):
    """How `ApiKeyAuthentication` looks in the document."""

    target_class = "mlserve.api.authentication.ApiKeyAuthentication"
    name = "ApiKey"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key: `manage.py api_key create --name NAME --scopes score,debug`.",
        }
