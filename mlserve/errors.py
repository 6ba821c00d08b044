"""What can go wrong, under names that clients may rely on. The HTTP status of each is chosen here and nowhere else."""

from collections.abc import Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import ClassVar

import msgspec


class ErrorCode(StrEnum):
    """The `code` of a problem. A code keeps its meaning for ever; new ones may come."""

    MALFORMED_REQUEST = "malformed_request"
    """The request cannot be read: not JSON, broken UTF-8, a duplicate key, a wrong host."""
    INVALID_PARAMETER = "invalid_parameter"
    """A query parameter, a part of the path or a header has a value that is not allowed."""
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    """The key is good, but lacks the scope that is named."""
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_ACCEPTABLE = "not_acceptable"
    RATE_LIMITED = "rate_limited"
    """The key has asked for more than its limit lets through."""
    TRANSACTION_CONFLICT = "transaction_conflict"
    """This transaction id was scored before with other contents."""
    LENGTH_REQUIRED = "length_required"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INVALID_FIELDS = "invalid_fields"
    """The body is JSON, but not what was asked for; `errors` names every wrong field."""
    INTERNAL = "internal"
    NO_ACTIVE_MODEL = "no_active_model"
    MODEL_UNUSABLE = "model_unusable"
    """The model version that is active cannot be loaded, and this host has no other."""
    FEATURES_UNAVAILABLE = "features_unavailable"
    """A policy forbids to score without a feature group that could not be read."""
    SOURCE_UNAVAILABLE = "source_unavailable"
    """Postgres did not answer, and nothing else can."""
    SOURCE_READ_ONLY = "source_read_only"
    """Postgres reads and does not write: nothing of the request was stored."""
    SOURCE_CONTENTION = "source_contention"
    """Somebody else holds what was wanted in Postgres: nothing of the request was stored."""
    OVERLOADED = "overloaded"
    """More is asked for than this process can give; nothing of the request was looked at."""


STATUS_OF: dict[ErrorCode, HTTPStatus] = {
    ErrorCode.MALFORMED_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorCode.INVALID_PARAMETER: HTTPStatus.BAD_REQUEST,
    ErrorCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    ErrorCode.NOT_ACCEPTABLE: HTTPStatus.NOT_ACCEPTABLE,
    ErrorCode.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.TRANSACTION_CONFLICT: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.LENGTH_REQUIRED: HTTPStatus.LENGTH_REQUIRED,
    ErrorCode.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.INVALID_FIELDS: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.NO_ACTIVE_MODEL: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.MODEL_UNUSABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.FEATURES_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.SOURCE_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.SOURCE_READ_ONLY: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.SOURCE_CONTENTION: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
}

TITLE_OF: dict[ErrorCode, str] = {
    ErrorCode.MALFORMED_REQUEST: "The request cannot be read",
    ErrorCode.INVALID_PARAMETER: "A parameter is not allowed",
    ErrorCode.UNAUTHENTICATED: "A valid API key is needed",
    ErrorCode.FORBIDDEN: "The API key lacks a scope",
    ErrorCode.NOT_FOUND: "Nothing is here",
    ErrorCode.METHOD_NOT_ALLOWED: "The method is not allowed here",
    ErrorCode.NOT_ACCEPTABLE: "Only JSON is served",
    ErrorCode.RATE_LIMITED: "The API key's limit is used up",
    ErrorCode.TRANSACTION_CONFLICT: "The transaction is known with other contents",
    ErrorCode.LENGTH_REQUIRED: "The length of the body is needed",
    ErrorCode.BODY_TOO_LARGE: "The body is too large",
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: "Only JSON is understood",
    ErrorCode.INVALID_FIELDS: "Some fields are wrong",
    ErrorCode.INTERNAL: "Something went wrong here",
    ErrorCode.NO_ACTIVE_MODEL: "No model is active",
    ErrorCode.MODEL_UNUSABLE: "The active model cannot be loaded",
    ErrorCode.FEATURES_UNAVAILABLE: "Features that the policy demands are unavailable",
    ErrorCode.SOURCE_UNAVAILABLE: "The database does not answer",
    ErrorCode.SOURCE_READ_ONLY: "The database is read-only",
    ErrorCode.SOURCE_CONTENTION: "Somebody else is changing the same rows",
    ErrorCode.OVERLOADED: "Too much is asked of this service at the moment",
}


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One wrong place: a JSON pointer (RFC 6901) into the body, or the name of a parameter."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class MlserveError(Exception):
    """Base of all errors that callers may see. Subclasses state their `code` and stand in the module that raises them.

    `detail` is shown to the caller: it names the offending value and the fix, never a secret. `retry_after_s`, where
    trying again can help, is sent as `Retry-After`.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
