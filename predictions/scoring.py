"""Scores a transaction: the request's whole story, in order.

Read the features through the cache, derive the vector, predict (a prediction is cached as well, under a digest of
model, artifact and exact input), decide, say what was degraded, make it durable, answer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from struct import pack
from typing import ClassVar

import msgspec

from features.compute import VectorPlan, transaction_tag
from features.definitions import CUSTOMER_ACTIVITY
from features.embedding_builds import note_differing_builds
from features.policies import policies_in_force
from features.vectors import keys_of, read_groups
from features.write_behind import note_score
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Reading
from mlserve.cache.entry import Entry
from mlserve.cache.keys import PREDICTION, Key
from mlserve.cache.outcome import Degradation, Outcome
from mlserve.cache.policy import PolicyBook
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from mlserve.errors import ErrorCode, MlserveError
from predictions import delivery
from predictions.answers import make_response, needs_reasons, trace_of, what_was_asked_for
from predictions.conflicts import Known
from predictions.decisions import decide
from predictions.doubts import doubts_about
from predictions.identity import digest_of, transaction_of
from predictions.journal import JournalEntry, journal, stored_response
from predictions.messages import ScoreOptions, ScoreRequest, ScoreResponse, with_degradation
from predictions.missing import OnMissingSource, refuses
from predictions.predicting import compute_if_unknown
from predictions.reasons import explain
from predictions.registry.active import current_model
from predictions.registry.artifact import LoadedModel


class FeaturesUnavailable(MlserveError):
    """Policy or model forbids to score without a group that neither cache nor source could supply."""

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
    doubts = doubts_about(book)
    delivery.ensure_delivering()
    lap = Laps(cache.clock.monotonic)
    budget = cache.budget()
    plan = plan_of(model.feature_names)

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
    refuse_missing(outcomes, reading.degradations, book, model.on_missing_source)
    lap("features")

    derived = plan.derive(
        occurred_at=request.occurred_at.timestamp(),
        amount=request.amount,
        tag=transaction_tag(request.transaction_id),
        groups={group: outcome.values for group, outcome in outcomes.items()},
    )
    prediction = _predict(model, derived.values, book=book, budget=budget, dry_run=options.dry_run)
    lap("predict")

    predicted = next(iter(prediction.outcomes.values()))
    assert predicted.values is not None, "the model always answers"
    decided = decide(predicted.values[0], model.thresholds)
    response = make_response(
        request=request,
        model=model,
        policy_version=book.version,
        derived=derived,
        outcomes=outcomes,
        degradations=reading.degradations | doubts,
        prediction=predicted,
        decided=decided,
        reasons=explain(model, derived.values, currency=request.currency) if needs_reasons(options, decided) else (),
        trace=trace_of((reading, prediction)),
        decided_at=datetime.fromtimestamp(now, UTC),
        features=options.features or not options.dry_run,
    )
    lap("decide")
    if options.dry_run:
        conflict = Known((request,)).conflict(request)
        if conflict is not None:
            raise conflict
        versions = versions_seen(outcomes.values(), at_least, request=request)
        return ScoredTransaction(_encode(response, options), False, lap.milliseconds, versions)

    recorded = journal().record(
        JournalEntry(
            transaction=transaction_of(request),
            client=client,
            digest=digest_of(request),
            model_version_id=model.model_version_id,
            policy_version=book.version,
            response=response,
        )
    )
    lap("journal")
    versions = versions_seen(outcomes.values(), at_least, request=request, activity_version=recorded.activity_version)
    if recorded.stored is not None:
        earlier = msgspec.json.decode(recorded.stored, type=ScoreResponse)
        return ScoredTransaction(_encode(earlier, options), True, lap.milliseconds, versions)
    if recorded.spooled:
        response = with_degradation(response, Degradation.DECISION_SPOOLED)
    cache.recorder.score(
        response.decision,
        degraded=response.degraded,
        cold_start=response.cold_start is True,
        seconds=lap.total_s,
    )
    if derived.unrelated:
        note_differing_builds(outcomes, book=book)
    note_score(merchant_id=request.merchant_id, amount=request.amount, at=now)
    return ScoredTransaction(_encode(response, options), False, lap.milliseconds, versions)


def stored_score(transaction_id: str) -> bytes | None:
    """The decision that was given, with features and trace, as JSON; None if there is none."""
    return stored_response(transaction_id)


class Laps:
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
def plan_of(feature_names: tuple[str, ...]) -> VectorPlan:
    """How a model version's vectors are derived, worked out once."""
    return VectorPlan(feature_names)


def refuse_missing(
    outcomes: Mapping[str, Outcome], degradations: AbstractSet[Degradation], book: PolicyBook, rule: OnMissingSource
) -> None:
    """Raises FeaturesUnavailable if a group that policy or model demands could not be read. `outcomes` by group."""
    if Degradation.SOURCE_UNAVAILABLE not in degradations:
        return
    refused = [
        group
        for group, outcome in outcomes.items()
        if outcome.values is None
        and not outcome.degradations
        and refuses(rule, policy_fails=book[group].fail_when_missing)
    ]
    if refused:
        who = "policy" if rule is OnMissingSource.FOLLOW else "model"
        raise FeaturesUnavailable(
            f"{', '.join(refused)} could not be read, and the {who} says to refuse the score rather than to assume "
            "defaults"
        )


def versions_seen(
    outcomes: Iterable[Outcome], at_least: Mapping[Key, int] | None, *, request: ScoreRequest, activity_version: int = 0
) -> dict[Key, int]:
    """What the caller has seen after this answer, its own transaction included if `activity_version` is known.

    What was only a substitute for something newer, or missing, takes away nothing of what it had seen before. What the
    source said counts, even if it is less: what it lost in a failover does not come back.
    """
    seen_before = at_least or {}
    versions = {}
    for outcome in outcomes:
        version = outcome.version
        if outcome.stale or outcome.entry is None:
            version = max(version, seen_before.get(outcome.key, 0))
        if version:
            versions[outcome.key] = version
    if activity_version:
        versions[Key("customer", request.customer_id, CUSTOMER_ACTIVITY.name)] = activity_version
    return versions


def _predict(
    model: LoadedModel,
    values: tuple[float, ...],
    *,
    book: PolicyBook,
    budget: Budget,
    dry_run: bool,
) -> Reading:
    cache, key = engine(), Key(PREDICTION, prediction_id(model, values), PREDICTION)
    computed = compute_if_unknown(
        (key,),
        policy=book[PREDICTION],
        compute=lambda: (model.score_one(values),),
        cache=cache,
        leave_no_trace=dry_run,
    )
    if computed is not None:
        return computed

    def compute(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        now = cache.clock.now()
        return {key: Entry(1, now, now, (model.score_one(values),)) for key in keys}

    return cache.predictions.read_many(
        [key],
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


_encoder = msgspec.json.Encoder()


def _encode(response: ScoreResponse, options: ScoreOptions) -> bytes:
    return _encoder.encode(what_was_asked_for(response, options))
