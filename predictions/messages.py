"""What goes in and out of scoring. The HTTP API, the commands and the journal speak these."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mlserve.api.moments import Instant
from mlserve.cache.outcome import Degradation

# Not dots alone: clients take `.` and `..` in a path for steps in it, and could never ask for such an id.
# `$` also matches before a final newline in Python, hence `\Z`; the OpenAPI document says `$`, as its dialect has it.
TransactionId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^\.*[A-Za-z0-9_:-][A-Za-z0-9._:-]*\Z",
        description="1 to 64 of the characters A-Z a-z 0-9 . _ : -, not dots alone",
    ),
]
EntityId = TransactionId
Amount = Annotated[
    float, Meta(ge=0, le=1_000_000_000, description="in units of the currency, 0 to 1,000,000,000, at most 4 decimals")
]
Currency = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z]{3}\Z",
        description="three capital letters (ISO 4217)",
        extra_json_schema={"nullable": True},  # null is as if it were left out (`shapes.py`)
    ),
]
Moment = Annotated[
    datetime, Meta(tz=True, description="RFC 3339 with a time zone, from 1970 to at most one day from now")
]
ReportId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._:-]+\Z",
        description="1 to 64 of the characters A-Z a-z 0-9 . _ : -; the reporter's own name for this report",
    ),
]
IsFraud = Annotated[bool, Meta(description="true or false")]
MaxAge = Annotated[float, Meta(ge=0, le=31_536_000, description="seconds, 0 to 31,536,000 (a year)")]


class RiskLevel(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transaction to be scored. `max_age_s` is tighter than policy; 0 reads the source."""

    transaction_id: TransactionId
    occurred_at: Moment
    customer_id: EntityId
    merchant_id: EntityId
    amount: Amount
    currency: Currency = "EUR"
    max_age_s: MaxAge | None = None


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of a transaction, as somebody reports it. `reported_at`: when they said so; now if it is left out.

    The same `report_id` again, or without one the same contents, is the same report and changes nothing.
    """

    transaction_id: TransactionId
    is_fraud: IsFraud
    reported_at: Moment | None = None
    report_id: ReportId | None = None


class ScoreOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to answer. A dry run stores nothing, fills nothing and counts nothing."""

    features: bool = False
    trace: bool = False
    reasons: bool = False
    dry_run: bool = False


class ServedModel(msgspec.Struct, frozen=True, gc=False):
    name: str
    version: int


class Reason(msgspec.Struct, frozen=True, gc=False):
    """`effect` is the change of the score against this feature at its training median, in probability."""

    feature: str
    value: float
    effect: float
    text: str


class ServedFeature(msgspec.Struct, frozen=True, gc=False):
    """One number of the model's input, with where it came from.

    A feature that derives from two groups shows the older one, or the one that is stale. `as_of` and `age_s` are None
    for what the request itself determines and for defaults.
    """

    name: str
    value: float
    tier: str
    as_of: Instant | None
    age_s: float | None
    max_age_s: float | None
    stale: bool


class ServedTier(msgspec.Struct, frozen=True, gc=False):
    tier: str
    asked: int
    hit: int
    ms: float


class ScoreResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer. `features` and `trace` stand there if they were asked for.

    `degraded`: the system could not say what it should have, for `degraded_reasons`. `cold_start`: it could, and in
    some feature group nothing is known of the customer or the merchant yet; left out by releases that did not say so.
    """

    transaction_id: str
    score: float
    risk_level: RiskLevel
    decision: str
    reasons: tuple[Reason, ...]
    degraded: bool
    degraded_reasons: tuple[str, ...]
    cold_start: bool | UnsetType = UNSET
    oldest_feature_age_s: float | None
    model: ServedModel
    policy_version: int
    prediction_tier: str
    decided_at: Instant
    features: tuple[ServedFeature, ...] | None = None
    trace: tuple[ServedTier, ...] | None = None


def with_degradation(response: ScoreResponse, degradation: Degradation) -> ScoreResponse:
    """The same answer, flagged."""
    reasons = tuple(sorted({*response.degraded_reasons, degradation}))
    return msgspec.structs.replace(response, degraded=True, degraded_reasons=reasons)
