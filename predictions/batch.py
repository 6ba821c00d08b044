"""Scores many transactions at once: the story of `scoring.py`, with every step taken once for all of them.

One look-up of the cache, one run of the model, one commit. The items are scored in their order, as if each had been
recorded before the next was read: of one customer's transactions a later one has the earlier ones in its windows.
An item that cannot be scored or recorded leaves its error in its place and harms no other.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import ClassVar

import msgspec

from features.compute import Derived, VectorPlan, transaction_tag, with_transaction
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
from predictions.decisions import Decided, decide
from predictions.doubts import doubts_about
from predictions.identity import digest_of, transaction_of
from predictions.journal import JournalEntry, Recorded, TransactionConflict, journal
from predictions.messages import ScoreOptions, ScoreRequest, ScoreResponse, with_degradation
from predictions.missing import OnMissingSource
from predictions.predicting import compute_if_unknown
from predictions.reasons import explain_many
from predictions.registry.active import current_model
from predictions.registry.artifact import LoadedModel
from predictions.scoring import Laps, plan_of, prediction_id, refuse_missing, versions_seen

_OF_AGE = frozenset({Degradation.STALE, Degradation.STALE_REFRESHING, Degradation.STALE_SOURCE_UNAVAILABLE})
_NOTHING_WRONG: frozenset[Degradation] = frozenset()


class NotScorable(MlserveError):
    """What was read of this transaction's customer or merchant gives no score: something in it is not a number."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL


class ScoredItem(msgspec.Struct, frozen=True):
    """`versions`: of what was read for this item and, where it is known, of what it has written."""

    response: ScoreResponse
    versions: Mapping[Key, int]
    replayed: bool = False


class ScoredBatch(msgspec.Struct, frozen=True):
    """`items`: for each request its answer, or its error. `server_timing`: milliseconds by step."""

    items: list[ScoredItem | MlserveError]
    server_timing: dict[str, float]


class _Candidate(msgspec.Struct):
    """One transaction on its way to an answer. `error` ends it."""

    request: ScoreRequest
    digest: bytes
    outcomes: dict[str, Outcome] = {}
    degradations: AbstractSet[Degradation] = _NOTHING_WRONG
    reading: Reading | None = None
    derived: Derived | None = None
    prediction: Outcome | None = None
    decided: Decided | None = None
    response: ScoreResponse | None = None
    replayed: bool = False
    activity_version: int = 0
    error: MlserveError | None = None


def score_batch(
    *,
    requests: Sequence[ScoreRequest | MlserveError],
    options: ScoreOptions,
    client: str,
    now: float,
    at_least: Mapping[Key, int] | None = None,
) -> ScoredBatch:
    """The decision on each, durable when this returns unless it is a dry run; errors in `requests` stay where they are.

    A transaction that stands there twice is scored once, its repetitions are replayed; one that stands there with
    other contents is a conflict. `now` in seconds since 1970; `client` names who asked; `at_least`: the versions that
    it has seen. Raises NoActiveModel.
    """
    cache, model, book = engine(), current_model(), policies_in_force()
    doubts = doubts_about(book)
    delivery.ensure_delivering()
    lap = Laps(cache.clock.monotonic)
    places, candidates = _distinct(requests, dry_run=options.dry_run)

    plan = plan_of(model.feature_names)
    budget = cache.budget()
    rule = model.on_missing_source
    _read(candidates, plan, book=book, rule=rule, budget=budget, options=options, at_least=at_least)
    lap("features")
    _derive(candidates, plan)
    predicted = _predict(candidates, model, book=book, budget=budget, dry_run=options.dry_run)
    lap("predict")
    _decide(candidates, model)
    _answer(candidates, model, book=book, doubts=doubts, predicted=predicted, options=options, decided_at=now)
    lap("decide")
    if not options.dry_run:
        recorded = _record(candidates, model, book=book, client=client)
        lap("journal")
        for each in recorded:
            assert each.response is not None
            cache.recorder.score(
                each.response.decision,
                degraded=each.response.degraded,
                cold_start=each.response.cold_start is True,
                seconds=lap.total_s,
            )
            if each.derived is not None and each.derived.unrelated:
                note_differing_builds(each.outcomes, book=book)
            note_score(merchant_id=each.request.merchant_id, amount=each.request.amount, at=now)
    return ScoredBatch(_items(places, options, at_least), lap.milliseconds)


def _distinct(
    requests: Sequence[ScoreRequest | MlserveError], *, dry_run: bool
) -> tuple[list[_Candidate | MlserveError], list[_Candidate]]:
    """Which candidate answers for each place, and the candidates. A repetition's candidate stands in an earlier place.

    Of two with one id and other contents the journal says which is the conflict: it knows what was scored before.
    A dry run asks what is known; of two that are new it is the later one.
    """
    known_before = Known([each for each in requests if isinstance(each, ScoreRequest)]) if dry_run else None
    places: list[_Candidate | MlserveError] = []
    known: dict[tuple[str, bytes], _Candidate] = {}
    claimed: dict[str, bytes] = {}
    for request in requests:
        if isinstance(request, MlserveError):
            places.append(request)
            continue
        digest = digest_of(request)
        candidate = known.get((request.transaction_id, digest))
        if candidate is None:
            candidate = known[request.transaction_id, digest] = _Candidate(request, digest)
            claimed_first = claimed.setdefault(request.transaction_id, digest) == digest
            if known_before is not None and known_before.is_decided(request):
                candidate.error = known_before.conflict(request)
            elif known_before is not None and (conflict := known_before.conflict(request)) is not None:
                candidate.error = conflict
            elif known_before is not None and not claimed_first:
                candidate.error = TransactionConflict(
                    f"transaction {request.transaction_id} stands in this batch before, with other contents; "
                    "a new transaction needs a new transaction_id"
                )
        places.append(candidate)
    return places, list(known.values())


def _open(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    return [each for each in candidates if each.error is None]


# --- features ---


def _read(
    candidates: Sequence[_Candidate],
    plan: VectorPlan,
    *,
    book: PolicyBook,
    rule: OnMissingSource,
    budget: Budget,
    options: ScoreOptions,
    at_least: Mapping[Key, int] | None,
) -> None:
    """All groups of all items in one look-up; items that want fresher values than policy does are looked up apart.

    Those that name an age are read under the tightest of their ages, and each is judged by its own; those that want the
    source are one statement. So three look-ups are the most, and only two of them ask L2.
    """
    open_ones = _open(candidates)
    named = [each.request.max_age_s for each in open_ones if each.request.max_age_s]
    tightest = min(named, default=None)
    for max_age_s, wanted in (
        (None, [each for each in open_ones if each.request.max_age_s is None]),
        (tightest, [each for each in open_ones if each.request.max_age_s]),
        (0.0, [each for each in open_ones if each.request.max_age_s == 0]),
    ):
        if not wanted:
            continue
        keys_of_each = [
            keys_of(groups=plan.groups, customer_id=each.request.customer_id, merchant_id=each.request.merchant_id)
            for each in wanted
        ]
        reading = read_groups(
            {key: key for keys in keys_of_each for key in keys.values()},
            book=book,
            request=RequestTier(),
            budget=budget,
            max_age_s=max_age_s,
            at_least=at_least,
            leave_no_trace=options.dry_run,
        )
        for each, keys in zip(wanted, keys_of_each, strict=True):
            _take(each, keys, reading, book=book, rule=rule, read_under_s=max_age_s)


def _take(
    candidate: _Candidate,
    keys: Mapping[str, Key],
    reading: Reading,
    *,
    book: PolicyBook,
    rule: OnMissingSource,
    read_under_s: float | None,
) -> None:
    """This item's part of the reading, and what was wrong with that part alone."""
    found, degraded, max_age_s = reading.outcomes, reading.degraded, candidate.request.max_age_s
    candidate.reading = reading
    candidate.outcomes = {group: found[key] for group, key in keys.items()}
    if not degraded and max_age_s == read_under_s:
        return
    wrong: set[Degradation] = set()
    for group, key in keys.items():
        of_key = degraded.get(key, _NOTHING_WRONG)
        if max_age_s != read_under_s:
            own = book[group].allowed_age_s(max_age_s)
            outcome = candidate.outcomes[group] = _under(found[key], own, proven=book[group].proven)
            if not outcome.stale:
                of_key = of_key - _OF_AGE
        wrong |= of_key
    candidate.degradations = wrong
    try:
        refuse_missing(candidate.outcomes, wrong, book, rule)
    except MlserveError as error:
        candidate.error = error


def _under(outcome: Outcome, max_age_s: float, *, proven: bool) -> Outcome:
    """The outcome by another limit than the tighter one that it was read under.

    What is unproven, or older than what the client has seen, or behind the ledger, stays flagged.
    """
    outdated = outcome.entry is not None and outcome.entry.outdated
    by_age_alone = not proven and not outdated and outcome.age_s > outcome.max_age_s
    stale = outcome.stale and not (by_age_alone and outcome.age_s <= max_age_s)
    kept = tuple(each for each in outcome.degradations if stale or each is not Degradation.STALE)
    return Outcome(outcome.key, outcome.entry, outcome.tier, outcome.age_s, max_age_s, stale, kept)


def _derive(candidates: Sequence[_Candidate], plan: VectorPlan) -> None:
    """Each item's vector. Who has several transactions here has the earlier ones in the windows of the later ones."""
    times: dict[str, int] = {}
    for each in _open(candidates):
        times[each.request.customer_id] = times.get(each.request.customer_id, 0) + 1
    claimed: set[str] = set()
    activity: dict[str, tuple[float, ...]] = {}
    for each in _open(candidates):
        request = each.request
        at, tag = request.occurred_at.timestamp(), transaction_tag(request.transaction_id)
        groups = {group: outcome.values for group, outcome in each.outcomes.items()}
        customer = request.customer_id
        if times[customer] > 1 and CUSTOMER_ACTIVITY.name in groups:
            known = groups[CUSTOMER_ACTIVITY.name] = activity.get(customer) or groups[CUSTOMER_ACTIVITY.name]
            if request.transaction_id not in claimed:
                activity[customer] = with_transaction(known, at=at, amount=request.amount, tag=tag)
                claimed.add(request.transaction_id)
        each.derived = plan.derive(occurred_at=at, amount=request.amount, tag=tag, groups=groups)


# --- scores ---


def _predict(
    candidates: Sequence[_Candidate], model: LoadedModel, *, book: PolicyBook, budget: Budget, dry_run: bool
) -> Reading | None:
    """Every item's prediction: what is not held is computed in one run of the model."""
    inputs: dict[Key, tuple[float, ...]] = {}
    key_of: list[tuple[_Candidate, Key]] = []
    for each in _open(candidates):
        assert each.derived is not None
        key = Key(PREDICTION, prediction_id(model, each.derived.values), PREDICTION)
        inputs[key] = each.derived.values
        key_of.append((each, key))
    if not inputs:
        return None
    cache = engine()

    def compute(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        now, scores = cache.clock.now(), model.score_many([inputs[key] for key in keys])
        return {key: Entry(1, now, now, (score,)) for key, score in zip(keys, scores, strict=True)}

    reading = compute_if_unknown(
        list(inputs),
        policy=book[PREDICTION],
        compute=lambda: model.score_many(list(inputs.values())),
        cache=cache,
        leave_no_trace=dry_run,
    ) or cache.predictions.read_many(
        list(inputs),
        policies=book.policies,
        loader=compute,
        request=RequestTier(),
        budget=budget,
        leave_no_trace=dry_run,
    )
    for each, key in key_of:
        each.prediction = reading.outcomes[key]
    return reading


def _decide(candidates: Sequence[_Candidate], model: LoadedModel) -> None:
    for each in _open(candidates):
        assert each.prediction is not None and each.prediction.values is not None, "the model always answers"
        try:
            each.decided = decide(each.prediction.values[0], model.thresholds)
        except ValueError as error:
            each.error = NotScorable(f"transaction {each.request.transaction_id}: {error}")


def _answer(
    candidates: Sequence[_Candidate],
    model: LoadedModel,
    *,
    book: PolicyBook,
    doubts: frozenset[Degradation],
    predicted: Reading | None,
    options: ScoreOptions,
    decided_at: float,
) -> None:
    decided = [each for each in _open(candidates) if each.derived is not None and each.decided is not None]
    explained = [each for each in decided if each.decided is not None and needs_reasons(options, each.decided)]
    reasons = explain_many(
        model,
        [each.derived.values for each in explained if each.derived is not None],
        currencies=[each.request.currency for each in explained],
    )
    reasons_of = {id(each): why for each, why in zip(explained, reasons, strict=True)}
    readings = {id(each.reading): each.reading for each in decided if each.reading is not None}
    of_all = tuple(each for each in (*readings.values(), predicted) if each is not None)
    trace, moment = trace_of(of_all), datetime.fromtimestamp(decided_at, UTC)
    for each in decided:
        assert each.derived is not None and each.prediction is not None and each.decided is not None
        each.response = make_response(
            request=each.request,
            model=model,
            policy_version=book.version,
            derived=each.derived,
            outcomes=each.outcomes,
            degradations=each.degradations | doubts,
            prediction=each.prediction,
            decided=each.decided,
            reasons=reasons_of.get(id(each), ()),
            trace=trace,
            decided_at=moment,
            features=options.features or not options.dry_run,
        )


# --- the record ---


def _record(candidates: Sequence[_Candidate], model: LoadedModel, *, book: PolicyBook, client: str) -> list[_Candidate]:
    """In one commit. Those that are new; the others have the answer of then, or their error."""
    waiting = [(each, each.response) for each in _open(candidates) if each.response is not None]
    outcomes = journal().record_many(
        [
            JournalEntry(
                transaction=transaction_of(each.request),
                client=client,
                digest=each.digest,
                model_version_id=model.model_version_id,
                policy_version=book.version,
                response=response,
            )
            for each, response in waiting
        ]
    )
    return [
        each for (each, response), outcome in zip(waiting, outcomes, strict=True) if _settle(each, response, outcome)
    ]


def _settle(candidate: _Candidate, response: ScoreResponse, outcome: Recorded | MlserveError) -> bool:
    """Whether this is a new decision."""
    if isinstance(outcome, MlserveError):
        candidate.error = outcome
        return False
    candidate.activity_version = outcome.activity_version
    if outcome.stored is not None:
        candidate.response, candidate.replayed = msgspec.json.decode(outcome.stored, type=ScoreResponse), True
        return False
    if outcome.spooled:
        candidate.response = with_degradation(response, Degradation.DECISION_SPOOLED)
    return True


def _items(
    places: Sequence[_Candidate | MlserveError], options: ScoreOptions, at_least: Mapping[Key, int] | None
) -> list[ScoredItem | MlserveError]:
    items: list[ScoredItem | MlserveError] = []
    answered: set[int] = set()
    for place in places:
        if isinstance(place, MlserveError):
            items.append(place)
        elif place.error is not None:
            items.append(place.error)
        else:
            assert place.response is not None
            again = not options.dry_run and id(place) in answered
            versions = versions_seen(
                place.outcomes.values(), at_least, request=place.request, activity_version=place.activity_version
            )
            response = what_was_asked_for(place.response, options)
            items.append(ScoredItem(response, versions, place.replayed or again))
            answered.add(id(place))
    return items
