"""What an answer says: the decision, where each feature came from, what was degraded, what each tier did."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from features.compute import Derived
from features.definitions import MODEL_FEATURES
from mlserve.cache.cascade import Reading
from mlserve.cache.outcome import Degradation, Outcome, Tier, TierTrace
from predictions.decisions import Decided
from predictions.messages import (
    Reason,
    RiskLevel,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
    ServedFeature,
    ServedModel,
    ServedTier,
)
from predictions.registry.artifact import LoadedModel

_COLD = frozenset({Degradation.UNKNOWN_ENTITY})
_AGE_DIGITS = 6
_MS_DIGITS = 3
"""Microseconds: what the clock gives; more digits would only look precise."""
_TIERS_BY_DISTANCE = {tier: distance for distance, tier in enumerate(Tier)}


def needs_reasons(options: ScoreOptions, decided: Decided) -> bool:
    """Who is not simply approved learns why, asked for or not."""
    return options.reasons or decided.risk_level is not RiskLevel.LOW


def make_response(
    *,
    request: ScoreRequest,
    model: LoadedModel,
    policy_version: int,
    derived: Derived,
    outcomes: Mapping[str, Outcome],
    degradations: AbstractSet[Degradation],
    prediction: Outcome,
    decided: Decided,
    reasons: tuple[Reason, ...],
    trace: tuple[ServedTier, ...],
    decided_at: datetime,
    features: bool = True,
) -> ScoreResponse:
    """The answer. `outcomes` by feature group; `degradations` are those of the read.

    `features` is what the journal keeps, asked for or not; without a journal nobody need work them out.
    """
    assert prediction.values is not None, "the model always answers"
    if derived.incomplete:
        degradations = degradations | {Degradation.WINDOW_INCOMPLETE}
    if derived.unrelated:
        degradations = degradations | {Degradation.EMBEDDING_BUILDS_DIFFER}
    ages = [outcome.age_s for outcome in outcomes.values() if outcome.values is not None]
    return ScoreResponse(
        transaction_id=request.transaction_id,
        score=prediction.values[0],
        risk_level=decided.risk_level,
        decision=decided.decision,
        reasons=reasons,
        degraded=bool(degradations - _COLD),
        degraded_reasons=tuple(sorted(degradations - _COLD)),
        cold_start=bool(degradations & _COLD),
        oldest_feature_age_s=round(max(ages), _AGE_DIGITS) if ages else None,
        model=ServedModel(model.name, model.version),
        policy_version=policy_version,
        prediction_tier=prediction.tier,
        decided_at=decided_at,
        features=_served(model.feature_names, derived, outcomes) if features else None,
        trace=trace,
    )


def what_was_asked_for(response: ScoreResponse, options: ScoreOptions) -> ScoreResponse:
    """The rest is left out; the journal keeps all of it."""
    if options.features and options.trace:
        return response
    return msgspec.structs.replace(
        response,
        features=response.features if options.features else None,
        trace=response.trace if options.trace else None,
    )


def trace_of(readings: Iterable[Reading]) -> tuple[ServedTier, ...]:
    """Each tier's part in these readings together."""
    merged: dict[Tier, TierTrace] = {}
    for trace in (trace for reading in readings for trace in reading.trace):
        held = merged.setdefault(trace.tier, TierTrace(trace.tier))
        held.asked += trace.asked
        held.hit += trace.hit
        held.ms += trace.ms
    return tuple(
        ServedTier(trace.tier, trace.asked, trace.hit, round(trace.ms, _MS_DIGITS)) for trace in merged.values()
    )


class _Provenance(NamedTuple):
    """Where the features that derive from the same groups come from: the farthest tier, the oldest value."""

    tier: str
    as_of: datetime | None
    age_s: float | None
    max_age_s: float | None
    stale: bool


_OF_AFFINITY = MODEL_FEATURES["affinity"].groups
_FROM_REQUEST = _Provenance(Tier.REQUEST, None, None, None, False)


def _served(names: Sequence[str], derived: Derived, outcomes: Mapping[str, Outcome]) -> tuple[ServedFeature, ...]:
    groups_of, distinct = _groups_of(tuple(names))
    provenance = {groups: _provenance([outcomes[group] for group in groups]) for groups in distinct}
    provenance[()] = _FROM_REQUEST
    if derived.unrelated:
        limit_s = provenance[_OF_AFFINITY].max_age_s
        provenance[_OF_AFFINITY] = _Provenance(Tier.DEFAULT, None, None, limit_s, False)
    return tuple(
        [
            ServedFeature(name, value, *provenance[groups])
            for name, value, groups in zip(names, derived.values, groups_of, strict=True)
        ]
    )


@lru_cache(maxsize=16)
def _groups_of(names: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], frozenset[tuple[str, ...]]]:
    """The groups that each of a model's features derives from, and each such combination once."""
    groups = tuple(MODEL_FEATURES[name].groups for name in names)
    return groups, frozenset(groups) - {()}


def _provenance(outcomes: Sequence[Outcome]) -> _Provenance:
    farthest = oldest = outcomes[0]
    if len(outcomes) > 1:
        farthest = max(outcomes, key=lambda each: (_TIERS_BY_DISTANCE[each.tier], each.age_s))
        oldest = max(outcomes, key=lambda each: each.age_s)
    if farthest.values is None:
        return _Provenance(Tier.DEFAULT, None, None, farthest.max_age_s, False)
    return _Provenance(
        farthest.tier,
        datetime.fromtimestamp(oldest.as_of, UTC),
        round(oldest.age_s, _AGE_DIGITS),
        oldest.max_age_s,
        any(each.stale for each in outcomes),
    )


def is_same_answer(one: ScoreResponse, other: ScoreResponse) -> bool:
    """Whether both say the same of the transaction and are based on the same values.

    They may differ in what only tells when and how they came about: the moment, ages, tiers and times of look-ups, and
    that one went through the spool.
    """
    return _substance(one) == _substance(other)


def _substance(response: ScoreResponse) -> ScoreResponse:
    reasons = tuple(reason for reason in response.degraded_reasons if reason != Degradation.DECISION_SPOOLED)
    return msgspec.structs.replace(
        response,
        degraded=bool(reasons),
        degraded_reasons=reasons,
        oldest_feature_age_s=None,
        prediction_tier="",
        decided_at=datetime.fromtimestamp(0, UTC),
        features=response.features
        and tuple(
            msgspec.structs.replace(feature, tier="", as_of=None, age_s=None, max_age_s=None)
            for feature in response.features
        ),
        trace=None,
    )
