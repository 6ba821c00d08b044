"""Examples that work, and what each endpoint of features may answer."""

from typing import Any, Final

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema

from features.api.shown import EntityShown, InvalidatedShown, PolicyList
from features.definitions import GROUPS_OF_ENTITY
from mlserve.api.openapi import KEYED, VERSION_ANSWERED, answer, problems
from mlserve.errors import ErrorCode

_ENTITY: Final[dict[str, Any]] = {
    "entity": "merchant",
    "id": "M00001",
    "at": "2026-01-05T14:30:00Z",
    "groups": [
        {
            "group": "merchant_profile",
            "values": {"first_seen": 1530403200.0, "typical_ticket": 54.2},
            "copies": [
                {
                    "tier": "l3",
                    "negative": False,
                    "version": 4211,
                    "as_of": "2026-01-05T12:05:00Z",
                    "written_at": "2026-01-05T12:05:00Z",
                    "age_s": 8700.0,
                    "max_age_s": 86400.0,
                    "stale": False,
                }
            ],
        }
    ],
}
_INVALIDATED: Final[dict[str, Any]] = {
    "entity": "merchant",
    "id": "M00001",
    "groups": ["merchant_profile", "merchant_risk", "merchant_embedding", "merchant_traffic"],
    "delivered": True,
}
_POLICIES: Final[dict[str, Any]] = {
    "policy_version": 7,
    "policies": [
        {
            "name": "merchant_risk",
            "fresh_for_s": 3600.0,
            "grace_s": 21600.0,
            "negative_ttl_s": 30.0,
            "freshness": "ttl",
            "use_l1": True,
            "use_l2": True,
            "on_missing": "default",
            "updated_at": "2026-01-05T09:00:00Z",
            "write": "around",
        }
    ],
}
_ID_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "pattern": r"^\.*[A-Za-z0-9_:-][A-Za-z0-9._:-]*$",
}
_PATH: Final = [
    OpenApiParameter("entity", OpenApiTypes.STR, OpenApiParameter.PATH, enum=list(GROUPS_OF_ENTITY)),
    OpenApiParameter("entity_id", _ID_SCHEMA, OpenApiParameter.PATH, description="The entity's id."),
]

describe_peek = extend_schema(
    operation_id="peek_features",
    summary="What every tier holds of an entity",
    tags=["features"],
    parameters=[*_PATH, VERSION_ANSWERED],
    responses={
        **answer(EntityShown, "Group by group", example=_ENTITY),
        **problems(*KEYED, ErrorCode.INVALID_PARAMETER),
    },
)
describe_invalidate = extend_schema(
    operation_id="invalidate_features",
    summary="Drop an entity's copies from the cache",
    tags=["features"],
    parameters=_PATH,
    responses={
        **answer(InvalidatedShown, "What was dropped", example=_INVALIDATED),
        **problems(*KEYED, ErrorCode.INVALID_PARAMETER),
    },
)
describe_policies = extend_schema(
    operation_id="list_policies",
    summary="The TTL policies in force",
    tags=["features"],
    responses={**answer(PolicyList, "Every policy", example=_POLICIES), **problems(*KEYED)},
)
