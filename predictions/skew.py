"""Whether serving agrees with training: journalled vectors against what training has of the same transactions.

A sample of the decisions of the last hours is taken out of the journal, each with the features that it was served. The
vectors that a training run would have of these transactions are computed from the ledger as it is now, point in time,
by the code of training. Where a served value is another one, there may be a reason for it that the system knows: it was
flagged, it was of another build than the moment's, or a transaction arrived only after it was served. Such differences
are counted by their reason. Whatever differs without one is skew: the model is asked about values that it did not learn
from, and nobody has been told. The target is none.

For the customer's windows a reason must account for the very value that was served. What else has a reason is not
judged any further: a value that is both of an older build and wrong counts as the former.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from django.db import connection

from features.compute import activity_windows
from features.cutoffs import GROUPS_WITH_CUTOFF, cutoff_us
from features.definitions import (
    CUSTOMER_ACTIVITY,
    CUSTOMER_PROFILE,
    LABEL_DELAY_DAYS,
    MERCHANT_PROFILE,
    MERCHANT_RISK,
    MODEL_FEATURES,
    WINDOW_DAYS,
)
from features.ledger import microseconds
from features.point_in_time import vectors_of
from features.progress import Progress, silent
from mlserve.cache.outcome import Degradation, Tier
from mlserve.observability import metrics
from predictions import stored
from predictions.messages import ScoreResponse, ServedFeature
from predictions.models import SkewCheck

SAMPLE = 1_000
SPAN = timedelta(hours=24)
TOLERANCE = 1e-6
"""Of a value, or of its size if that is above 1."""
MAX_REQUEST_DELAY = timedelta(days=1)
"""Embeddings are computed anew for each day that the sample reaches back to."""
COMMITTED_WITHIN = timedelta(seconds=5)
"""Recorded so shortly before, a transaction may not have been committed: no acknowledged one takes longer."""
MAX_EXAMPLES = 20
KEPT = timedelta(days=90)
_LONGEST_WINDOW = timedelta(days=max(WINDOW_DAYS))
_LABEL_DELAY = timedelta(days=LABEL_DELAY_DAYS)
_TICK = timedelta(microseconds=1)
_WINDOW_FEATURES = [name for name, of in MODEL_FEATURES.items() if CUSTOMER_ACTIVITY.name in of.groups]


class Skipped(StrEnum):
    """Why a decision of the sample was not compared at all."""

    LATE_REQUEST = "late_request"
    """It was asked for more than a day after the transaction occurred: what was built since was served."""
    NOT_IN_LEDGER = "not_in_ledger"
    UNREADABLE = "unreadable"


class Reason(StrEnum):
    """Why a value may differ. The first that applies is counted."""

    DEFAULT = "default"
    """Nobody knew a value; a default was served, flagged."""
    STALE = "stale"
    """It was flagged as past its limit."""
    WINDOW_INCOMPLETE = "window_incomplete"
    """The kept history was too short, which was flagged."""
    OLDER_BUILD = "older_build"
    """It was of a build before the last cutoff: the newer one had not run yet, or its copy had not arrived."""
    NEWER_BUILD = "newer_build"
    """It was of a build after a cutoff that the transaction lies before: the request came late."""
    LATE_ARRIVAL = "late_arrival"
    """A transaction that belongs into it was recorded only after it was served, or at about the same time."""
    SAME_MOMENT = "same_moment"
    """The customer has another transaction at that microsecond: training orders them by id, serving as they come."""


class FeatureSkew(msgspec.Struct):
    """Of one feature: values compared; those that differ without a reason; those that differ with one, by reason."""

    compared: int = 0
    differing: int = 0
    explained: dict[str, int] = {}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A value that differs without a reason. `as_of`: of what was served; None if the request alone determines it."""

    transaction_id: str
    feature: str
    served: float
    expected: float
    tier: str
    as_of: datetime | None
    decided_at: datetime


class SkewReport(msgspec.Struct, frozen=True, kw_only=True):
    """`sampled` decisions of those from `since` on and before `until`; `skipped` of them were not compared, by reason.

    `compared`, `differing` and `explained` count values, over all features. At most `MAX_EXAMPLES` differences are
    shown.
    """

    since: datetime
    until: datetime
    sampled: int
    skipped: dict[str, int]
    compared: int
    differing: int
    explained: dict[str, int]
    features: dict[str, FeatureSkew]
    examples: list[Difference]


class _Sampled(NamedTuple):
    transaction_id: str
    customer_id: str
    merchant_id: str
    occurred_at: datetime
    response: ScoreResponse


class _Doubt(NamedTuple):
    """A value that differs, with what is needed to find a reason for it."""

    of: _Sampled
    served: ServedFeature
    expected: float


def check_skew(
    *, now: datetime, sample: int = SAMPLE, span: timedelta = SPAN, progress: Progress = silent
) -> SkewReport:
    """Compares up to `sample` decisions of the last `span`, counts in the metrics what it finds and keeps the report.

    Reads the whole ledger, as a build does. Raises Django's database errors.
    """
    skipped: Counter[str] = Counter()
    progress("read the sample", 0.0)
    decisions = _sample(now - span, now, sample, skipped)
    sampled = len(decisions) + skipped.total()
    features: dict[str, FeatureSkew] = {}
    doubts = _compare(decisions, features, until=now, progress=progress)
    progress("look for reasons", 0.0)
    found: list[Difference] = []
    for doubt, reason in zip(doubts, _reasons(doubts), strict=True):
        of = features[doubt.served.name]
        if reason is not None:
            of.explained[reason] = of.explained.get(reason, 0) + 1
            continue
        of.differing += 1
        found.append(_difference(doubt))
    report = SkewReport(
        since=now - span,
        until=now,
        sampled=sampled,
        skipped=dict(skipped),
        compared=sum(of.compared for of in features.values()),
        differing=len(found),
        explained=dict(sum((Counter(of.explained) for of in features.values()), Counter[str]())),
        features=features,
        examples=found[:MAX_EXAMPLES],
    )
    _count(report)
    _keep(report)
    return report


def _sample(since: datetime, until: datetime, size: int, skipped: Counter[str]) -> list[_Sampled]:
    with connection.cursor() as cursor:
        cursor.execute(_SAMPLE, {"since": since, "until": until, "size": size})
        rows = cursor.fetchall()
    decisions = []
    for transaction_id, customer_id, merchant_id, occurred_at, column in rows:
        response = _response_of(column)
        if occurred_at is None:
            skipped[Skipped.NOT_IN_LEDGER] += 1
        elif response is None or not response.features:
            skipped[Skipped.UNREADABLE] += 1
        elif response.decided_at - occurred_at > MAX_REQUEST_DELAY:
            skipped[Skipped.LATE_REQUEST] += 1
        else:
            decisions.append(_Sampled(transaction_id, customer_id, merchant_id, occurred_at, response))
    return decisions


def _response_of(column: bytes | memoryview) -> ScoreResponse | None:
    try:
        return msgspec.json.decode(stored.unpack(column), type=ScoreResponse)
    except (stored.AnswerUnreadable, msgspec.MsgspecError):
        return None


def _compare(
    decisions: Sequence[_Sampled], features: dict[str, FeatureSkew], *, until: datetime, progress: Progress
) -> list[_Doubt]:
    """What differs. Counts in `features` what was compared."""
    served = {name for each in decisions for name in _served(each)}
    names = [name for name in MODEL_FEATURES if name in served]
    if not names:
        return []
    newest = max(until, *(each.occurred_at for each in decisions))
    vectors = vectors_of([each.transaction_id for each in decisions], names, until=newest, progress=progress)
    rows = dict(zip(vectors.transaction_ids.tolist(), vectors.X.tolist(), strict=True))
    features |= {name: FeatureSkew() for name in names}
    doubts = []
    for each in decisions:
        expected = dict(zip(names, rows[each.transaction_id], strict=True))
        for name, feature in _served(each).items():
            features[name].compared += 1
            if not _agree(feature.value, expected[name]):
                doubts.append(_Doubt(each, feature, expected[name]))
    return doubts


def _agree(value: float, expected: float) -> bool:
    return abs(value - expected) <= TOLERANCE * max(1.0, abs(expected))


def _served(decision: _Sampled) -> dict[str, ServedFeature]:
    return {feature.name: feature for feature in decision.response.features or () if feature.name in MODEL_FEATURES}


def _reasons(doubts: Sequence[_Doubt]) -> list[Reason | None]:
    reasons = [_flag_of(doubt) or _other_build(doubt) for doubt in doubts]
    arrivals = _Arrivals()
    return [reason or arrivals.reason_of(doubt) for doubt, reason in zip(doubts, reasons, strict=True)]


def _flag_of(doubt: _Doubt) -> Reason | None:
    if doubt.served.tier == Tier.DEFAULT:
        return Reason.DEFAULT
    if doubt.served.stale:
        return Reason.STALE
    flagged = Degradation.WINDOW_INCOMPLETE in doubt.of.response.degraded_reasons
    if flagged and CUSTOMER_ACTIVITY.name in MODEL_FEATURES[doubt.served.name].groups:
        return Reason.WINDOW_INCOMPLETE
    return None


def _other_build(doubt: _Doubt) -> Reason | None:
    for group in GROUPS_WITH_CUTOFF.intersection(MODEL_FEATURES[doubt.served.name].groups):
        assert doubt.served.as_of is not None, "only defaults have none"
        served, right = (cutoff_us(group, microseconds(at)) for at in (doubt.served.as_of, doubt.of.occurred_at))
        if served != right:
            return Reason.OLDER_BUILD if served < right else Reason.NEWER_BUILD
    return None


class _Look(NamedTuple):
    """For a transaction of this customer or merchant (None: of anybody) that occurred before `end`, and not before
    `begin`, and was recorded after `known_at`."""

    column: str
    entity_id: str | None
    begin: datetime
    end: datetime
    known_at: datetime


class _Arrivals:
    """What was recorded too late for a value. Asks once for what several values may lack."""

    def __init__(self) -> None:
        self._windows: dict[str, list[tuple[Reason, tuple[float, ...]]]] = {}
        self._found: dict[_Look, bool] = {}

    def reason_of(self, doubt: _Doubt) -> Reason | None:
        groups = MODEL_FEATURES[doubt.served.name].groups
        if CUSTOMER_ACTIVITY.name in groups:
            return self._reason_of_window(doubt)
        if not groups:
            return None
        look = _late_look(doubt, groups)
        if look not in self._found:
            self._found[look] = _is_there(look)
        return Reason.LATE_ARRIVAL if self._found[look] else None

    def _reason_of_window(self, doubt: _Doubt) -> Reason | None:
        transaction_id = doubt.of.transaction_id
        if transaction_id not in self._windows:
            self._windows[transaction_id] = list(_possible_windows(doubt.of))
        place = _WINDOW_FEATURES.index(doubt.served.name)
        for reason, windows in self._windows[transaction_id]:
            if _agree(doubt.served.value, windows[place]):
                return reason
        return None


def _late_look(doubt: _Doubt, groups: Sequence[str]) -> _Look:
    """Of a feature of built groups. A build reads the ledger after its `as_of`: what was recorded before is in it."""
    assert doubt.served.as_of is not None, "only defaults have none"
    of, known_at = doubt.of, doubt.served.as_of
    cutoff = min(_as_moment(cutoff_us(group, microseconds(of.occurred_at))) for group in groups)
    match groups:
        case (MERCHANT_RISK.name,):
            end = cutoff - _LABEL_DELAY + _TICK
            return _Look("merchant_id", of.merchant_id, end - _LONGEST_WINDOW, end, known_at)
        case (CUSTOMER_PROFILE.name,):
            return _Look("customer_id", of.customer_id, _EPOCH, cutoff, known_at)
        case (MERCHANT_PROFILE.name,):
            return _Look("merchant_id", of.merchant_id, _EPOCH, cutoff, known_at)
    return _Look("id", None, _EPOCH, cutoff, known_at)  # whoever pays moves all embeddings


def _is_there(look: _Look) -> bool:
    whose = "TRUE" if look.entity_id is None else f"{look.column} = %(entity_id)s"
    with connection.cursor() as cursor:
        cursor.execute(_ARRIVED.format(whose=whose), look._asdict())
        return bool(cursor.fetchall()[0][0])


def _possible_windows(of: _Sampled) -> Iterator[tuple[Reason, tuple[float, ...]]]:
    """The customer's windows without those transactions that may not have been there yet, the newest first to go.

    The reason for which they differ from training's: with all transactions, only the order of equal moments is left.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            _WINDOW,
            {
                "customer_id": of.customer_id,
                "begin": of.occurred_at - _LONGEST_WINDOW,
                "end": of.occurred_at,
                "own": of.transaction_id,
            },
        )
        rows = cursor.fetchall()
    known_at = of.response.decided_at - COMMITTED_WITHIN
    arrivals = sorted({recorded_at for _, _, recorded_at in rows if recorded_at > known_at}, reverse=True)
    amount = next(feature.value for feature in of.response.features or () if feature.name == "amount")
    for last in (None, *arrivals):
        values = [0.0]
        for at_s, paid, recorded_at in rows:
            if last is None or recorded_at < last:
                values += (at_s, paid, 0.0)
        windows = activity_windows(values, at=of.occurred_at.timestamp(), amount=amount, tag=None)
        yield Reason.SAME_MOMENT if last is None else Reason.LATE_ARRIVAL, windows.values


def _as_moment(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _difference(doubt: _Doubt) -> Difference:
    return Difference(
        transaction_id=doubt.of.transaction_id,
        feature=doubt.served.name,
        served=doubt.served.value,
        expected=doubt.expected,
        tier=doubt.served.tier,
        as_of=doubt.served.as_of,
        decided_at=doubt.of.response.decided_at,
    )


def _count(report: SkewReport) -> None:
    metrics.SKEW_DECISIONS.labels("compared").inc(report.sampled - sum(report.skipped.values()))
    for why, number in report.skipped.items():
        metrics.SKEW_DECISIONS.labels(str(why)).inc(number)
    for name, of in report.features.items():
        outcomes: Mapping[str, int] = {
            "equal": of.compared - of.differing - sum(of.explained.values()),
            "differing": of.differing,
            **of.explained,
        }
        for outcome, number in outcomes.items():
            metrics.SKEW_VALUES.labels(name, str(outcome)).inc(number)


def _keep(report: SkewReport) -> None:
    shown: Any = msgspec.to_builtins(report)
    SkewCheck.objects.create(
        at=report.until,
        sampled=report.sampled,
        compared=report.compared,
        differing=report.differing,
        report={"features": shown["features"], "examples": shown["examples"], "skipped": shown["skipped"]},
    )
    SkewCheck.objects.filter(at__lt=report.until - KEPT).delete()


def differing_features(features: Mapping[str, FeatureSkew]) -> Collection[str]:
    """Those with differences that have no reason, the most frequent first."""
    names = [name for name, of in features.items() if of.differing]
    return sorted(names, key=lambda name: (-features[name].differing, name))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The sample is drawn from the keys alone; answers are unpacked for what was drawn.
_SAMPLE = """
SELECT given.transaction_id, ledger.customer_id, ledger.merchant_id, ledger.occurred_at, given.response
FROM (
    SELECT transaction_id FROM predictions_decision
    WHERE decided_at >= %(since)s AND decided_at < %(until)s
    ORDER BY random() LIMIT %(size)s
) AS drawn
JOIN predictions_decision AS given USING (transaction_id)
LEFT JOIN features_transaction AS ledger ON ledger.id = drawn.transaction_id
"""
_ARRIVED = """
SELECT EXISTS (
    SELECT FROM features_transaction
    WHERE {whose} AND occurred_at >= %(begin)s AND occurred_at < %(end)s AND recorded_at > %(known_at)s
)
"""
_WINDOW = """
SELECT extract(epoch FROM occurred_at)::float8, amount::float8, recorded_at FROM features_transaction
WHERE customer_id = %(customer_id)s AND occurred_at > %(begin)s AND occurred_at <= %(end)s AND id <> %(own)s
ORDER BY occurred_at
"""
