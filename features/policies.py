"""The TTL policies in force in this process: edited in Postgres, obeyed by every process within a second.

A poller reads all of them together with the number of the newest revision, in one statement, and compares: a number
alone would not tell of a row that was removed, nor of a database that was restored. Requests read the book that the
last poll left. With Postgres away the last book stays in force. A process that starts without Postgres begins with the
copy on this host's disk, or with the definitions' defaults if there is none; either is not confirmed, and says so.

A row whose numbers make no sense is no reason to stop polling, nor to serve old values as fresh (`_duration`).
"""

import contextlib
import math
from collections.abc import Collection, Iterable
from typing import ClassVar

import msgspec
import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.db.models import Subquery

from features.definitions import GROUPS, DefaultPolicy
from features.models import PolicyRevision, TtlPolicy
from mlserve.cache.clock import SystemClock
from mlserve.cache.keys import PREDICTION
from mlserve.cache.policy import Policy, PolicyBook
from mlserve.errors import ErrorCode, MlserveError
from mlserve.local_copy import LocalCopy, moment
from mlserve.observability import metrics
from mlserve.poller import Poller

POLL_INTERVAL_S = 0.5
PREDICTION_SCHEMA = 1
PREDICTION_DEFAULT = DefaultPolicy(fresh_for_s=3600, grace_s=0, negative_ttl_s=0, use_l2=False)
"""A prediction's key holds its exact input, so it never goes stale; the TTL only bounds its stay. L2 is bypassed:
reading a prediction from Redis costs about ten times what computing it again costs."""
MAX_DURATION_S = 10 * 365 * 86_400.0
"""Of what a policy says. Moments and lifetimes in Redis that lie further ahead cannot be written down any more."""
_DURATIONS = ("fresh_for_s", "grace_s", "negative_ttl_s")
_COPY_SCHEMA = 1
_log = structlog.get_logger(__name__)


class PoliciesUnconfirmed(MlserveError):
    """Postgres has not said to this process which policies are in force."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A policy as it was edited: the columns of `TtlPolicy`. Durations in seconds."""

    name: str
    fresh_for_s: float
    grace_s: float
    negative_ttl_s: float
    use_l1: bool
    use_l2: bool
    on_missing: str = TtlPolicy.OnMissing.DEFAULT.value
    freshness: str = TtlPolicy.Freshness.TTL.value


class KeptPolicies(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept on the disk: the version and what is obeyed, from which a release makes a book of its own."""

    version: int
    rows: tuple[PolicyRow, ...]


def default_policies() -> dict[str, DefaultPolicy]:
    """What a new installation starts with, by name."""
    return {**{group.name: group.policy for group in GROUPS.values()}, PREDICTION: PREDICTION_DEFAULT}


def policies_copy() -> LocalCopy[KeptPolicies]:
    """The policies on this host's disk."""
    return LocalCopy("policies", KeptPolicies, schema=_COPY_SCHEMA)


class _Book:
    def __init__(self) -> None:
        self.current: PolicyBook | None = None
        self.copied_at: float | None = None
        """Until when the policies were confirmed that a copy has brought; None if there was none."""
        self.poller = Poller("policies", POLL_INTERVAL_S, self._poll, then=self._keep)
        self._copy = policies_copy()
        self._loaded: KeptPolicies | None = None
        self._confirmed_at = 0.0

    def _poll(self) -> None:
        asked_at = SystemClock().now()
        newest = Subquery(PolicyRevision.objects.values("id")[:1])
        try:
            found = list(TtlPolicy.objects.annotate(revision=newest))
        except (DatabaseError, InterfaceError):
            if self.current is None:
                self._begin_without_postgres()
            raise
        self._take(found[0].revision or 0 if found else 0, rows_of(found))
        self._confirmed_at = asked_at

    def _take(self, version: int, rows: Collection[PolicyRow]) -> None:
        loaded = KeptPolicies(version=version, rows=tuple(sorted((_obeyed(row) for row in rows), key=_name_of)))
        if loaded == self._loaded and self.current is not None and self.current.is_confirmed:
            return
        for wrong in nonsense(rows):
            _log.error("policy_makes_no_sense", policy=wrong)
        self._loaded, self.current = loaded, _book_of(loaded)
        metrics.UNCONFIRMED.labels("policies").set(0)

    def _begin_without_postgres(self) -> None:
        kept = self._copy.load()
        metrics.UNCONFIRMED.labels("policies").set(1)
        if kept is None:
            self.current = _defaults(is_confirmed=False)
        else:
            self.copied_at = kept.confirmed_at
            self.current = _book_of(kept.content, is_confirmed=False)
        _log.warning("policies_unconfirmed", version=self.current.version, confirmed_at=self.copied_at)

    def _keep(self) -> None:
        if self._loaded is not None:
            self._copy.save(self._loaded, confirmed_at=self._confirmed_at)


def _name_of(row: PolicyRow) -> str:
    return row.name


_book = _Book()


def policies_in_force() -> PolicyBook:
    """The policies of this moment; two reads within one request may differ, so a request reads them once.

    Only the first callers of a process wait for Postgres, together. Never raises for want of it.
    """
    book = _book
    book.poller.ensure_started()
    if book.current is None:
        with contextlib.suppress(DatabaseError, InterfaceError):  # the poll has then put the copy in force
            book.poller.poll_first()
    current = book.current
    return current if current is not None else _defaults(is_confirmed=False)


def start_polling() -> None:
    """Does not wait."""
    _book.poller.ensure_started()


def policies_are_confirmed() -> str:
    """For `/healthz/ready`. Raises PoliciesUnconfirmed while Postgres has not said what is in force."""
    current = policies_in_force()
    if current.is_confirmed:
        return f"version {current.version} is in force"
    copied_at = _book.copied_at
    if copied_at is None:
        raise PoliciesUnconfirmed("PostgreSQL has not answered, and there is no copy: the defaults are in force")
    raise PoliciesUnconfirmed(
        f"PostgreSQL has not answered: version {current.version} is in force, this host's copy of {moment(copied_at)}"
    )


def forget() -> None:
    """Stops polling and drops the book; the next `policies_in_force` begins anew."""
    global _book
    _book.poller.stop()
    _book = _Book()


def schema_of(name: str) -> int:
    """The schema number that copies under this policy must carry."""
    return GROUPS[name].schema if name in GROUPS else PREDICTION_SCHEMA


def is_proven(row: TtlPolicy | PolicyRow) -> bool:
    """A prediction never is. Its key holds its exact input: there is nothing that a relay could withdraw."""
    return row.freshness == TtlPolicy.Freshness.PROVEN and row.name != PREDICTION


def rows_of(policies: Iterable[TtlPolicy]) -> tuple[PolicyRow, ...]:
    """What the table says."""
    return tuple(PolicyRow(**{field: getattr(row, field) for field in PolicyRow.__struct_fields__}) for row in policies)


def nonsense(rows: Collection[PolicyRow]) -> list[str]:
    """Which rows say what cannot be obeyed, in words; each with what is done instead."""
    wrong = []
    known = default_policies()
    for row in rows:
        if row.name not in known:
            wrong.append(f"{row.name} is neither a feature group nor `prediction`: nothing obeys it")
        for field in _DURATIONS:
            said, obeyed = getattr(row, field), _duration(getattr(row, field))
            if said != obeyed:
                wrong.append(f"{row.name}: {field} is {said:g}; {obeyed:g} is in force")
    missing = sorted(known.keys() - {row.name for row in rows})
    return wrong + [f"{name} has no row: its default is in force" for name in missing]


def _defaults(*, is_confirmed: bool) -> PolicyBook:
    return _book_of(KeptPolicies(version=0, rows=()), is_confirmed=is_confirmed)


def _book_of(loaded: KeptPolicies, *, is_confirmed: bool = True) -> PolicyBook:
    """A policy for every name that this release knows, and for no other."""
    rows = {row.name: row for row in loaded.rows}
    policies = {
        name: _policy(rows[name] if name in rows else _row_of(name, default))
        for name, default in default_policies().items()
    }
    return PolicyBook(loaded.version, policies, is_confirmed)


def _row_of(name: str, default: DefaultPolicy) -> PolicyRow:
    return PolicyRow(
        name=name,
        fresh_for_s=default.fresh_for_s,
        grace_s=default.grace_s,
        negative_ttl_s=default.negative_ttl_s,
        use_l1=default.use_l1,
        use_l2=default.use_l2,
    )


def _policy(row: PolicyRow) -> Policy:
    group = GROUPS.get(row.name)
    return Policy(
        namespace=row.name,
        schema=schema_of(row.name),
        fresh_for_s=row.fresh_for_s,
        grace_s=row.grace_s,
        negative_ttl_s=row.negative_ttl_s,
        use_l1=row.use_l1,
        use_l2=row.use_l2,
        fail_when_missing=row.on_missing == TtlPolicy.OnMissing.FAIL,
        proven=is_proven(row),
        bound_s=settings.FRESHNESS_BOUND_S,
        fixed_values=len(group.values) if group else 1,
        repeated_values=len(group.repeated) if group else 0,
    )


def _obeyed(row: PolicyRow) -> PolicyRow:
    return msgspec.structs.replace(row, **{field: _duration(getattr(row, field)) for field in _DURATIONS})


def _duration(seconds: float) -> float:
    """What can be obeyed: 0 (no copy counts) for what is negative or no number, at most `MAX_DURATION_S`."""
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), MAX_DURATION_S)
