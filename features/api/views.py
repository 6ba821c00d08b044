"""Looking at features and dropping their copies over HTTP."""

from datetime import UTC, datetime
from re import compile as regex
from typing import ClassVar, Final

import msgspec
from django.http import HttpResponse
from rest_framework.request import Request

from features.api.openapi import describe_invalidate, describe_peek, describe_policies
from features.api.shown import list_policies, show_entity
from features.definitions import GROUPS_OF_ENTITY
from features.vectors import invalidate_entity, peek_entity
from mlserve.api import data_version
from mlserve.api.keyed_view import KeyedView
from mlserve.cache.keys import Key
from mlserve.errors import ErrorCode, FieldError, MlserveError

_JSON: Final = "application/json"
_is_entity_id = regex(r"(?!\.+\Z)[A-Za-z0-9._:-]{1,64}").fullmatch
_encode = msgspec.json.Encoder().encode


class InvalidEntity(MlserveError):
    code: ClassVar[ErrorCode] = ErrorCode.INVALID_PARAMETER


class EntityView(KeyedView):
    required_scopes: ClassVar = {"GET": "debug", "DELETE": "operate"}

    @describe_peek
    def get(self, _request: Request, entity: str, entity_id: str) -> HttpResponse:
        """Only looks: nothing is promoted, extended or refilled, and no counter of the cache moves.

        An entity that nobody knows has no values and no copies.
        """
        _check(entity, entity_id)
        now = datetime.now(UTC)
        peeked = peek_entity(entity=entity, entity_id=entity_id, now=now.timestamp())
        versions = {Key(entity, entity_id, found["group"]): found["version"] for found in peeked if found["version"]}
        return HttpResponse(
            _encode(show_entity(entity=entity, entity_id=entity_id, peeked=peeked, at=now)),
            content_type=_JSON,
            headers={data_version.HEADER: data_version.token_of(versions)},
        )

    @describe_invalidate
    def delete(self, _request: Request, entity: str, entity_id: str) -> HttpResponse:
        """The source keeps its values; the next score reads them anew."""
        _check(entity, entity_id)
        return HttpResponse(_encode(invalidate_entity(entity=entity, entity_id=entity_id)), content_type=_JSON)


class PoliciesView(KeyedView):
    required_scope = "score"

    @describe_policies
    def get(self, _request: Request) -> HttpResponse:
        """As edited in the admin; every process obeys an edit within a second."""
        return HttpResponse(_encode(list_policies()), content_type=_JSON)


def _check(entity: str, entity_id: str) -> None:
    if entity not in GROUPS_OF_ENTITY:
        detail = f"{entity[:64]!r} is no entity; allowed: {', '.join(GROUPS_OF_ENTITY)}"
        raise InvalidEntity(f"{detail}.", errors=[FieldError(parameter="entity", detail=detail)])
    if not _is_entity_id(entity_id):
        detail = f"{entity_id[:64]!r} is no id; allowed: 1 to 64 of the characters A-Z a-z 0-9 . _ : -, not dots alone"
        raise InvalidEntity(f"{detail}.", errors=[FieldError(parameter="entity_id", detail=detail)])
