"""Examples that work, and what each endpoint of scoring may answer."""

from typing import Any, Final

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema

from mlserve.api.openapi import (
    KEYED,
    REPLAYED,
    SERVER_TIMING,
    VERSION_ANSWERED,
    VERSION_SENT,
    answer,
    problems,
    request_body,
    schema_of,
)
from mlserve.errors import ErrorCode
from predictions.api.lists import BatchRequest, BatchResponse, LabelsRequest, LabelsResponse
from predictions.api.model_list import ModelList
from predictions.messages import ScoreRequest, ScoreResponse, TransactionId

_REQUEST: Final[dict[str, Any]] = {
    "transaction_id": "example-1",
    "occurred_at": "2026-01-05T14:30:00Z",
    "customer_id": "C000001",
    "merchant_id": "M00001",
    "amount": 62.5,
    "currency": "EUR",
}
_FRESHEST: Final[dict[str, Any]] = {**_REQUEST, "transaction_id": "example-2", "max_age_s": 0}
_RESPONSE: Final[dict[str, Any]] = {
    "transaction_id": "example-1",
    "score": 0.0131,
    "risk_level": "low",
    "decision": "approve",
    "reasons": [],
    "degraded": False,
    "degraded_reasons": [],
    "cold_start": False,
    "oldest_feature_age_s": 12.4,
    "model": {"name": "fraud", "version": 3},
    "policy_version": 7,
    "prediction_tier": "computed",
    "decided_at": "2026-01-05T14:30:00.412000Z",
}
_EXPLAINED: Final[dict[str, Any]] = {
    **_RESPONSE,
    "features": [
        {
            "name": "amount",
            "value": 62.5,
            "tier": "request",
            "as_of": None,
            "age_s": None,
            "max_age_s": None,
            "stale": False,
        },
        {
            "name": "merchant_risk_7d",
            "value": 0.02,
            "tier": "l2",
            "as_of": "2026-01-05T14:29:48Z",
            "age_s": 12.4,
            "max_age_s": 3600.0,
            "stale": False,
        },
    ],
    "trace": [{"tier": "l2", "asked": 6, "hit": 6, "ms": 0.31}],
}
_VERSION: Final = "b3BhcXVlLCBhcyBYLURhdGEtVmVyc2lvbiBpcw"
_BATCH: Final[dict[str, Any]] = {
    "results": [
        {"status": 200, "answer": _RESPONSE, "data_version": _VERSION},
        {
            "status": 200,
            "replayed": True,
            "answer": {**_RESPONSE, "transaction_id": "example-3"},
            "data_version": _VERSION,
        },
        {
            "status": 422,
            "problem": {
                "type": "urn:mlserve:error:invalid_fields",
                "title": "Some fields are wrong",
                "status": 422,
                "detail": "One field is wrong.",
                "code": "invalid_fields",
                "request_id": "019aa9a2-6c5e-7b1d-9a55-3f0f6d1c2b7e",
                "errors": [{"pointer": "/transactions/2/amount", "detail": "-1 is not allowed"}],
            },
        },
    ]
}
_LABELS: Final[dict[str, Any]] = {
    "results": [
        {"status": 200, "outcome": "recorded", "is_fraud": True},
        {
            "status": 404,
            "problem": {
                "type": "urn:mlserve:error:not_found",
                "title": "Nothing is here",
                "status": 404,
                "detail": "The ledger has no transaction example-3.",
                "code": "not_found",
                "request_id": "019aa9a2-6c5e-7b1d-9a55-3f0f6d1c2b7e",
            },
        },
    ]
}
_MODELS: Final[dict[str, Any]] = {
    "models": [
        {
            "name": "fraud",
            "version": 3,
            "active": True,
            "estimator": "boosted_trees",
            "features": ["amount", "is_weekend"],
            "thresholds": {"review": 0.21, "decline": 0.63},
            "on_missing_source": "follow",
            "metrics": {"auc_roc": 0.87},
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "created_at": "2026-01-05T09:00:00Z",
        }
    ]
}
_TRANSACTION_ID: Final = OpenApiParameter(
    "transaction_id",
    schema_of(TransactionId),
    OpenApiParameter.PATH,
    description="The id under which it was scored.",
)

_OPTIONS: Final = [
    OpenApiParameter(
        "include",
        {"type": "array", "items": {"type": "string", "enum": ["features", "trace", "reasons"]}},
        explode=False,
        description="More of the answer: every feature with its tier and age; what each tier did; why this score.",
    ),
    OpenApiParameter(
        "dry_run",
        {"type": "string", "enum": ["true", "false"]},
        description="Stores nothing, fills nothing, counts nothing. Left out: false.",
        # What a page fills in before anybody has typed must record nothing.
        examples=[OpenApiExample("Record nothing", value="true", parameter_only=("dry_run", "query"))],
    ),
]
_BODIED: Final = (ErrorCode.LENGTH_REQUIRED, ErrorCode.BODY_TOO_LARGE, ErrorCode.UNSUPPORTED_MEDIA_TYPE)
"""What any view that takes in a body may answer."""

describe_score = extend_schema(
    operation_id="score",
    summary="Score a transaction",
    tags=["scores"],
    parameters=[*_OPTIONS, VERSION_SENT, VERSION_ANSWERED, SERVER_TIMING, REPLAYED],
    request=request_body(ScoreRequest),
    examples=[
        OpenApiExample("A payment", value=_REQUEST, request_only=True),
        OpenApiExample("Straight from the source", value=_FRESHEST, request_only=True),
    ],
    responses={
        **answer(ScoreResponse, "The score and its decision", example=_RESPONSE),
        **problems(
            *KEYED,
            *_BODIED,
            ErrorCode.TRANSACTION_CONFLICT,
            ErrorCode.INVALID_FIELDS,
            ErrorCode.NO_ACTIVE_MODEL,
            ErrorCode.MODEL_UNUSABLE,
            ErrorCode.FEATURES_UNAVAILABLE,
            ErrorCode.OVERLOADED,
        ),
    },
)
describe_score_batch = extend_schema(
    operation_id="score_batch",
    summary="Score up to 100 transactions",
    tags=["scores"],
    parameters=[*_OPTIONS, VERSION_SENT, SERVER_TIMING],
    request=request_body(BatchRequest),
    examples=[
        OpenApiExample(
            "Two payments",
            value={"transactions": [_REQUEST, {**_REQUEST, "transaction_id": "example-3", "amount": 7.9}]},
            request_only=True,
        )
    ],
    responses={
        **answer(BatchResponse, "A result for each transaction, in their order", example=_BATCH),
        **problems(
            *KEYED,
            *_BODIED,
            ErrorCode.NO_ACTIVE_MODEL,
            ErrorCode.MODEL_UNUSABLE,
            ErrorCode.OVERLOADED,
        ),
    },
)
describe_stored_score = extend_schema(
    operation_id="get_score",
    summary="A score that was given",
    tags=["scores"],
    parameters=[
        _TRANSACTION_ID,
        OpenApiParameter(
            "include",
            {"type": "array", "items": {"type": "string", "enum": ["features", "trace", "reasons"]}},
            explode=False,
            description="`reasons`: also of an approval that was given without. Features and trace are always there.",
        ),
    ],
    responses={
        **answer(ScoreResponse, "As it was given, with features and trace", example=_EXPLAINED),
        **problems(*KEYED, ErrorCode.NOT_FOUND, ErrorCode.MODEL_UNUSABLE, ErrorCode.OVERLOADED),
    },
)
describe_labels = extend_schema(
    operation_id="report_labels",
    summary="Report fraud, or its absence",
    tags=["labels"],
    request=request_body(LabelsRequest),
    examples=[
        OpenApiExample(
            "A chargeback, and a payment that was genuine",
            value={
                "labels": [
                    {
                        "transaction_id": "the-id-of-a-payment",
                        "is_fraud": True,
                        "reported_at": "2026-01-12T09:00:00Z",
                        "report_id": "chargeback-1",
                    },
                    {"transaction_id": "the-id-of-another", "is_fraud": False},
                ]
            },
            request_only=True,
        )
    ],
    responses={
        **answer(LabelsResponse, "A result for each label, in their order", example=_LABELS),
        **problems(*KEYED, *_BODIED, ErrorCode.OVERLOADED),
    },
)
describe_models = extend_schema(
    operation_id="list_models",
    summary="Model versions",
    tags=["models"],
    responses={**answer(ModelList, "Every version, newest first", example=_MODELS), **problems(*KEYED)},
)
