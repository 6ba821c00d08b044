"""Giving out API keys and taking them back. A key exists in the clear only in the answer to its making."""

import secrets
from collections.abc import Collection
from datetime import datetime
from hashlib import sha256
from typing import ClassVar, Final

import msgspec
from django.db import IntegrityError, transaction

from mlserve.api.key_format import KEY_RULE, is_possible_key
from mlserve.api.limit import MOST_PER_S
from mlserve.api.models import ApiKey
from mlserve.errors import ErrorCode, FieldError, MlserveError

NAME_CHARACTERS_MAX: Final = 100
_KEY_PREFIX: Final = "mls_"
_RANDOM_BYTES: Final = 32
"""43 characters in base64: guessing is hopeless, so one fast hash is enough to store."""
_SHOWN_LENGTH: Final = 12


class KeyRefused(MlserveError):
    """The key cannot be made as asked; `errors` name each wrong field."""

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_FIELDS


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key in the clear with its record. `created` is False if this very key was there before, equal and valid."""

    key: str
    record: ApiKey
    created: bool


def digest_of(key: bytes) -> str:
    """SHA-256 in hex: what is stored and looked up instead of the key."""
    return sha256(key).hexdigest()


def issue_key(
    *,
    name: str,
    scopes: Collection[str],
    key: str | None = None,
    rate_per_s: int | None = None,
    burst: int | None = None,
) -> IssuedKey:
    """Stores a new random key, or the given one. Giving the same valid key with the same scopes again changes nothing.

    `rate_per_s` and `burst` are what `limit_in_force` takes. Raises `KeyRefused` for an empty or too long name, unknown
    or no scopes, a limit that is none, a given key that is too short, has characters that a bearer token may not have,
    was revoked, or exists with other scopes.
    """
    wanted = _checked(name=name, scopes=scopes, key=key, limit=_wrong_limit(rate_per_s, burst))
    if key is None:
        key = _KEY_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        prefix = key[:_SHOWN_LENGTH]
    else:
        # A chosen key is short; showing its first characters would give much of it away.
        prefix = f"set_{digest_of(key.encode())[:8]}"
    try:
        with transaction.atomic():
            record = ApiKey.objects.create(
                name=name.strip(),
                prefix=prefix,
                digest=digest_of(key.encode()),
                scopes=wanted,
                rate_per_s=rate_per_s,
                burst=burst,
            )
    except IntegrityError:
        return IssuedKey(key=key, record=_same_key(key=key, scopes=wanted), created=False)
    return IssuedKey(key=key, record=record, created=True)


def revoke_key(record: ApiKey, *, now: datetime) -> bool:
    """Ends the key's life in every process within `lookup.FRESH_FOR_S`. False if it had ended before."""
    changed = ApiKey.objects.filter(pk=record.pk, revoked_at=None).update(revoked_at=now)
    record.refresh_from_db()
    return bool(changed)


def set_limit(record: ApiKey, *, rate_per_s: int | None, burst: int | None) -> None:
    """Replaces the key's limit; every process obeys within `lookup.FRESH_FOR_S`. Raises `KeyRefused`."""
    wrong = _wrong_limit(rate_per_s, burst)
    if wrong:
        raise KeyRefused("; ".join(f"{error.parameter}: {error.detail}" for error in wrong), errors=wrong)
    ApiKey.objects.filter(pk=record.pk).update(rate_per_s=rate_per_s, burst=burst)
    record.refresh_from_db()


def widen_scopes(*, key: str, name: str, scopes: Collection[str]) -> list[str]:
    """Adds the scopes that the given key lacks, if it is known by that name and was not revoked. Which were added.

    Every process obeys within `lookup.FRESH_FOR_S`.
    """
    with transaction.atomic():
        known = ApiKey.objects.select_for_update().filter(digest=digest_of(key.encode()), name=name, revoked_at=None)
        record = known.first()
        added = [] if record is None else [scope for scope in scopes if scope not in record.scopes]
        if record is not None and added:
            record.scopes = [scope for scope in ApiKey.Scope.values if scope in {*record.scopes, *added}]
            record.save(update_fields=["scopes"])
    return added


def _wrong_limit(rate_per_s: int | None, burst: int | None) -> list[FieldError]:
    errors = []
    if rate_per_s is not None and not 0 <= rate_per_s <= MOST_PER_S:
        errors.append(FieldError(parameter="rate_per_s", detail=f"{rate_per_s}: allowed are 0 to {MOST_PER_S:,}"))
    if burst is not None and not 1 <= burst <= MOST_PER_S:
        errors.append(FieldError(parameter="burst", detail=f"{burst}: allowed are 1 to {MOST_PER_S:,}"))
    return errors


def _checked(*, name: str, scopes: Collection[str], key: str | None, limit: list[FieldError]) -> list[str]:
    errors = [*limit]
    if not name.strip():
        errors.append(FieldError(parameter="name", detail="say who uses the key"))
    elif len(name.strip()) > NAME_CHARACTERS_MAX:
        detail = f"has {len(name.strip())} characters; at most {NAME_CHARACTERS_MAX}"
        errors.append(FieldError(parameter="name", detail=detail))
    unknown = sorted(set(scopes) - set(ApiKey.Scope.values))
    if unknown or not scopes:
        what = f"unknown: {', '.join(unknown)}; " if unknown else "none given; "
        errors.append(FieldError(parameter="scopes", detail=f"{what}allowed: {', '.join(ApiKey.Scope.values)}"))
    if key is not None and not is_possible_key(key):
        errors.append(FieldError(parameter="key", detail=KEY_RULE))
    if errors:
        raise KeyRefused("; ".join(f"{error.parameter}: {error.detail}" for error in errors), errors=errors)
    return [scope for scope in ApiKey.Scope.values if scope in scopes]


def _same_key(*, key: str, scopes: list[str]) -> ApiKey:
    record = ApiKey.objects.get(digest=digest_of(key.encode()))
    if record.revoked_at is not None:
        raise KeyRefused(f"key: this key was revoked at {record.revoked_at:%Y-%m-%d %H:%M:%S} UTC; choose another")
    if record.scopes != scopes:
        raise KeyRefused(f"key: this key exists with the scopes {', '.join(record.scopes)}; revoke it first")
    return record
