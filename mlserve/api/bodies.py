"""Taking in a request's body: how large it may be and what it must claim to be, decided before a byte is read."""

from typing import ClassVar, Final

from rest_framework.request import Request

from mlserve.errors import ErrorCode, MlserveError

MAX_BODY_BYTES: Final = 256 * 1024


class BodyTooLarge(MlserveError):
    code: ClassVar[ErrorCode] = ErrorCode.BODY_TOO_LARGE


class LengthRequired(MlserveError):
    """The body comes in chunks: WSGI shows none of it without a Content-Length."""

    code: ClassVar[ErrorCode] = ErrorCode.LENGTH_REQUIRED


class UnsupportedMediaType(MlserveError):
    code: ClassVar[ErrorCode] = ErrorCode.UNSUPPORTED_MEDIA_TYPE


class MalformedBody(MlserveError):
    """The body is not the JSON text that RFC 8259 describes."""

    code: ClassVar[ErrorCode] = ErrorCode.MALFORMED_REQUEST


def read_json_body(request: Request) -> bytes:
    """The raw bytes of a body that claims to be JSON; none of them looked at.

    Raises `UnsupportedMediaType`, `LengthRequired`, `BodyTooLarge`, or `MalformedBody` if it is empty or ends before
    its length.
    """
    meta = request._request.META
    _check_media_type(meta.get("CONTENT_TYPE", ""))
    length = meta.get("CONTENT_LENGTH") or ""
    if not length and "HTTP_TRANSFER_ENCODING" in meta:
        raise LengthRequired("Send the body with a Content-Length, not in chunks.")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"The body has {length} bytes; at most {MAX_BODY_BYTES} (256 KiB) are read.")
    body: bytes = request._request.body
    if not body:
        raise MalformedBody("The body is empty; send a JSON object.")
    if length.isdecimal() and len(body) < int(length):
        raise MalformedBody(f"The body ends after {len(body)} of {length} bytes.")
    return body


def _check_media_type(content_type: str) -> None:
    if content_type == "application/json":
        return
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media_type.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise UnsupportedMediaType(f"The Content-Type is {content_type[:100]!r}; send `application/json` in UTF-8.")
