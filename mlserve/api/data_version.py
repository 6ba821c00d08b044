"""`X-Data-Version`: which versions of stored values an answer knew, so that no later answer knows less.

A token names them, under the service's signature. A client that sends one back gets no copy that is older, from
whatever process: it sees its own acknowledged transactions, and what it has read does not go back in time. It sends
what it was given, as it was given; several tokens are separated by commas, and the newest version of each key counts.

Signed, because a version that nobody has given would make every look-up of its key a read of Postgres for ever. Not
encrypted: who may score may know which versions there are.
"""

from base64 import b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

import msgspec
from django.conf import settings
from django.http import HttpRequest
from django.utils.encoding import force_bytes
from rest_framework.request import Request

from mlserve.api.parameters import InvalidParameter
from mlserve.cache.keys import Key
from mlserve.errors import FieldError

HEADER: Final = "X-Data-Version"
MOST_CHARACTERS: Final = 4_096
"""Of the header as it is sent: several tokens, since one for two entities has some 400 and at most 900."""
_MAC_BYTES: Final = 16
_PURPOSE: Final = b"data-version-1"
"""Another number makes all tokens of before void: for another layout of the payload."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[tuple[str, str, str, int], ...]).decode


def token_of(versions: Mapping[Key, int]) -> str:
    """What the header of an answer says."""
    payload = _encode([(key.kind, key.id, key.group, version) for key, version in versions.items()])
    return urlsafe_b64encode(_mac(settings.SECRET_KEY, payload) + payload).rstrip(b"=").decode()


def versions_sent(request: HttpRequest | Request) -> Mapping[Key, int] | None:
    """What the request's header says that its sender has seen; None without one.

    Raises `InvalidParameter` for what is no token of this service's, and for a header that is too long.
    """
    header = request.META.get("HTTP_X_DATA_VERSION")
    return None if header is None else read_header(header)


def read_header(header: str) -> dict[Key, int]:
    """The newest version of each key that the tokens in `header` name. Raises as `versions_sent` does."""
    if len(header) > MOST_CHARACTERS:
        raise _refused(f"{len(header):,} characters; at most {MOST_CHARACTERS:,}: send the newest token of each entity")
    if not header.strip(", \t"):
        raise _refused("no token: send it as it came, or leave the header out")
    versions: dict[Key, int] = {}
    for text in header.split(","):
        token = text.strip()
        if not token:  # lists in headers may have empty elements (RFC 9110, section 5.6.1)
            continue
        for kind, entity_id, group, version in _opened(token):
            key = Key(kind, entity_id, group)
            versions[key] = max(version, versions.get(key, 0))
    return versions


def _opened(token: str) -> Iterable[tuple[str, str, str, int]]:
    try:
        sealed = b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, NotBase64):
        raise _refused("no token: send it as it came, or leave the header out") from None
    payload = sealed[_MAC_BYTES:]
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    if not any(compare_digest(_mac(secret, payload), sealed[:_MAC_BYTES]) for secret in secrets):
        raise _refused("not signed by this service with the key that it has now: leave the header out")
    return _decode(payload)


def _refused(detail: str) -> InvalidParameter:
    return InvalidParameter(f"{HEADER}: {detail}.", errors=[FieldError(parameter=HEADER, detail=detail)])


def _mac(secret: str | bytes, payload: bytes) -> bytes:
    digest = _keyed(secret).copy()
    digest.update(payload)
    return digest.digest()


@lru_cache(maxsize=8)
def _keyed(secret: str | bytes) -> blake2b:
    key = blake2b(force_bytes(secret), digest_size=32, person=_PURPOSE).digest()
    return blake2b(key=key, digest_size=_MAC_BYTES)
