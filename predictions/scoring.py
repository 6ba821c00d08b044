"""Scores a transaction: the request's whole story, in order.

Read the features through the cache, derive the vector, predict (a prediction is cached as well, under a digest of
model, artifact and exact input), decide, say what was degraded, make it durable, answer.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b, sha256
from struct import pack
from typing import ClassVar

import msgspec

from features.compute import Derived, VectorPlan, transaction_tag
from features.definitions import CUSTOMER_ACTIVITY, MODEL_FEATURES
from features.ingest import NewTransaction
from features.policies import policies_in_force
from features.vectors import keys_of, read_groups
from features.write_behind import note_score
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Reading
from mlserve.cache.entry import Entry
from mlserve.cache.keys import PREDICTION, Key
from mlserve.cache.outcome import Degradation, Outcome, Tier, TierTrace
from mlserve.cache.policy import PolicyBook
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from mlserve.errors import ErrorCode, MlserveError
from predictions import delivery
from predictions.decisions import decide
from predictions.journal import JournalEntry, journal, stored_response
from predictions.messages import (
    Reason,
    RiskLevel,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
    ServedFeature,
    ServedModel,
    ServedTier,
    with_degradation,
)
from predictions.reasons import explain
from predictions.registry.active import current_model
from predictions.registry.artifact import LoadedModel

_AGE_DIGITS = 6
_MS_DIGITS = 3
"""Microseconds: what the clock gives; more digits would only look precise."""
_TIERS_BY_DISTANCE = {tier: distance for distance, tier in enumerate(Tier)}


class FeaturesUnavailable(MlserveError):
    """A policy forbids to score without a group that neither cache nor source could supply."""

    code: ClassVar[ErrorCode] = ErrorCode.FEATURES_UNAVAILABLE
    retry_after_s: ClassVar[int | None] = 2


class ScoredTransaction(msgspec.Struct, frozen=True):
    """`body`: the response as JSON. `server_timing`: milliseconds by step, for the header of that name.

    `versions`: of what was read and, where it is known, of what this transaction has written.
    """

    body: bytes
    replayed: bool
    server_timing: dict[str, float]
    versions: Mapping[Key, int]


def score_transaction(
    *,
    request: ScoreRequest,
    options: ScoreOptions,
    client: str,
    now: float,
    at_least: Mapping[Key, int] | None = None,
) -> ScoredTransaction:
    """The decision on one transaction, durable when this returns unless it is a dry run.

    `now` in seconds since 1970; `client` names who asked; `at_least`: the versions that it has seen. Raises
    NoActiveModel, FeaturesUnavailable, TransactionConflict, or an error of the journal; never on account of the cache.
    """
    cache, model, book = engine(), current_model(), policies_in_force()
    delivery.ensure_delivering()
    lap = _Laps(cache.clock.monotonic)
    budget = cache.budget()
    plan = _plan_of(model.feature_names)

    keys = keys_of(groups=plan.groups, customer_id=request.customer_id, merchant_id=request.merchant_id)
    reading = read_groups(
        keys,
        book=book,
        request=RequestTier(),
        budget=budget,
        max_age_s=request.max_age_s,
        at_least=at_least,
        leave_no_trace=options.dry_run,
    )
    outcomes = {group: reading.outcomes[key] for group, key in keys.items()}
    _refuse_missing(outcomes, reading, book)
    lap("features")

    derived = plan.derive(
        occurred_at=request.occurred_at.timestamp(),
        amount=request.amount,
        tag=transaction_tag(request.transaction_id),
        groups={group: outcome.values for group, outcome in outcomes.items()},
    )
    prediction = _predict(model, derived.values, book=book, budget=budget, dry_run=options.dry_run)
    lap("predict")

    response = _response(
        request=request,
        options=options,
        model=model,
        book=book,
        derived=derived,
        outcomes=outcomes,
        readings=(reading, prediction),
        decided_at=datetime.fromtimestamp(now, UTC),
    )
    lap("decide")
    versions = _versions_of(reading.outcomes, at_least or {})
    if options.dry_run:
        return ScoredTransaction(_encode(response, options), False, lap.milliseconds, versions)

    recorded = journal().record(
        JournalEntry(
            transaction=_transaction_of(request),
            client=client,
            digest=_digest_of(request),
            model_version_id=model.model_version_id,
            policy_version=book.version,
            response=response,
        )
    )
    lap("journal")
    if recorded.activity_version:
        versions[Key("customer", request.customer_id, CUSTOMER_ACTIVITY.name)] = recorded.activity_version
    if recorded.stored is not None:
        earlier = msgspec.json.decode(recorded.stored, type=ScoreResponse)
        return ScoredTransaction(_encode(earlier, options), True, lap.milliseconds, versions)
    if recorded.spooled:
        response = with_degradation(response, Degradation.DECISION_SPOOLED)
    cache.recorder.score(response.decision, degraded=response.degraded, seconds=lap.total_s)
    note_score(merchant_id=request.merchant_id, amount=request.amount, at=now)
    return ScoredTransaction(_encode(response, options), False, lap.milliseconds, versions)


def stored_score(transaction_id: str) -> bytes | None:
    """The decision that was given, with features and trace, as JSON; None if there is none."""
    return stored_response(transaction_id)


class _Laps:
    """How long each step took."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._started = self._last = monotonic()
        self.milliseconds: dict[str, float] = {}

    def __call__(self, step: str) -> None:
        now = self._monotonic()
        self.milliseconds[step] = (now - self._last) * 1000
        self._last = now

    @property
    def total_s(self) -> float:
        return self._last - self._started


@lru_cache(maxsize=16)
def _plan_of(feature_names: tuple[str, ...]) -> VectorPlan:
    return VectorPlan(feature_names)


def _refuse_missing(outcomes: Mapping[str, Outcome], reading: Reading, book: PolicyBook) -> None:
    if Degradation.SOURCE_UNAVAILABLE not in reading.degradations:
        return
    refused = [
        group
        for group, outcome in outcomes.items()
        if outcome.values is None and not outcome.degradations and book[group].fail_when_missing
    ]
    if refused:
        raise FeaturesUnavailable(
            f"{', '.join(refused)} could not be read, and the policy says to refuse the score rather than to assume "
            "defaults"
        )


def _versions_of(outcomes: Mapping[Key, Outcome], at_least: Mapping[Key, int]) -> dict[Key, int]:
    """What the caller has seen after this answer.

    What was only a substitute for something newer, or missing, takes away nothing of what it had seen before. What the
    source said counts, even if it is less: what it lost in a failover does not come back.
    """
    versions = {}
    for key, outcome in outcomes.items():
        version = outcome.version
        if outcome.stale or outcome.entry is None:
            version = max(version, at_least.get(key, 0))
        if version:
            versions[key] = version
    return versions


def _predict(
    model: LoadedModel,
    values: tuple[float, ...],
    *,
    book: PolicyBook,
    budget: Budget,
    dry_run: bool,
) -> Reading:
    cache = engine()

    def compute(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        now = cache.clock.now()
        return {key: Entry(1, now, now, (model.score_one(values),)) for key in keys}

    return cache.predictions.read_many(
        [Key(PREDICTION, prediction_id(model, values), PREDICTION)],
        policies=book.policies,
        loader=compute,
        request=RequestTier(),  # nobody sees two values of a key that holds all its value was computed from
        budget=budget,
        leave_no_trace=dry_run,
    )


def prediction_id(model: LoadedModel, values: tuple[float, ...]) -> str:
    """Full width: whoever shares it has the same model, the same artifact and the same input, bit for bit."""
    digest = blake2b(pack(f"<{len(values)}d", *values), digest_size=32)
    digest.update(f"{model.name}\x00{model.version}\x00{model.digest}".encode())
    return digest.hexdigest()


def _response(
    *,
    request: ScoreRequest,
    options: ScoreOptions,
    model: LoadedModel,
    book: PolicyBook,
    derived: Derived,
    outcomes: Mapping[str, Outcome],
    readings: tuple[Reading, Reading],
    decided_at: datetime,
) -> ScoreResponse:
    prediction = next(iter(readings[1].outcomes.values()))
    assert prediction.values is not None, "the model always answers"
    score = prediction.values[0]
    decided = decide(score, model.thresholds)
    degradations = readings[0].degradations | ({Degradation.WINDOW_INCOMPLETE} if derived.incomplete else set())
    ages = [outcome.age_s for outcome in outcomes.values() if outcome.values is not None]
    reasons: tuple[Reason, ...] = ()
    if options.reasons or decided.risk_level is not RiskLevel.LOW:
        reasons = explain(model, derived.values, currency=request.currency)
    return ScoreResponse(
        transaction_id=request.transaction_id,
        score=score,
        risk_level=decided.risk_level,
        decision=decided.decision,
        reasons=reasons,
        degraded=bool(degradations),
        degraded_reasons=tuple(sorted(degradations)),
        oldest_feature_age_s=round(max(ages), _AGE_DIGITS) if ages else None,
        model=ServedModel(model.name, model.version),
        policy_version=book.version,
        prediction_tier=prediction.tier,
        decided_at=decided_at,
        features=_served(model.feature_names, derived.values, outcomes),
        trace=_merged(readings),
    )


class _Provenance(msgspec.Struct, frozen=True):
    """Where the features that derive from the same groups come from: the farthest tier, the oldest value."""

    tier: str
    as_of: datetime | None
    age_s: float | None
    max_age_s: float | None
    stale: bool


_FROM_REQUEST = _Provenance(Tier.REQUEST, None, None, None, False)


def _served(
    names: Sequence[str], values: Sequence[float], outcomes: Mapping[str, Outcome]
) -> tuple[ServedFeature, ...]:
    provenance: dict[tuple[str, ...], _Provenance] = {(): _FROM_REQUEST}
    served = []
    for name, value in zip(names, values, strict=True):
        groups = MODEL_FEATURES[name].groups
        source = provenance.get(groups)
        if source is None:
            source = provenance[groups] = _provenance([outcomes[group] for group in groups])
        served.append(
            ServedFeature(name, value, source.tier, source.as_of, source.age_s, source.max_age_s, source.stale)
        )
    return tuple(served)


def _provenance(outcomes: Sequence[Outcome]) -> _Provenance:
    farthest = max(outcomes, key=lambda each: (_TIERS_BY_DISTANCE[each.tier], each.age_s))
    if farthest.values is None:
        return _Provenance(Tier.DEFAULT, None, None, farthest.max_age_s, False)
    oldest = max(outcomes, key=lambda each: each.age_s)
    return _Provenance(
        farthest.tier,
        datetime.fromtimestamp(oldest.as_of, UTC),
        round(oldest.age_s, _AGE_DIGITS),
        oldest.max_age_s,
        any(each.stale for each in outcomes),
    )


def _merged(readings: Sequence[Reading]) -> tuple[ServedTier, ...]:
    merged: dict[Tier, TierTrace] = {}
    for trace in (trace for reading in readings for trace in reading.trace):
        held = merged.setdefault(trace.tier, TierTrace(trace.tier))
        held.asked += trace.asked
        held.hit += trace.hit
        held.ms += trace.ms
    return tuple(
        ServedTier(trace.tier, trace.asked, trace.hit, round(trace.ms, _MS_DIGITS)) for trace in merged.values()
    )


_encoder = msgspec.json.Encoder()


def _encode(response: ScoreResponse, options: ScoreOptions) -> bytes:
    """What was not asked for is left out; the journal keeps all of it."""
    if not (options.features and options.trace):
        response = msgspec.structs.replace(
            response,
            features=response.features if options.features else None,
            trace=response.trace if options.trace else None,
        )
    return _encoder.encode(response)


def _transaction_of(request: ScoreRequest) -> NewTransaction:
    return NewTransaction(
        request.transaction_id,
        request.occurred_at,
        request.customer_id,
        request.merchant_id,
        request.amount,
        request.currency,
    )


def _digest_of(request: ScoreRequest) -> bytes:
    """Over what makes the transaction, in one spelling; how fresh the features were asked for is not part of it."""
    canonical = msgspec.structs.replace(request, occurred_at=request.occurred_at.astimezone(UTC), max_age_s=None)
    return sha256(_encoder.encode(canonical)).digest()
