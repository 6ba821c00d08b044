"""The TTL policies in force in this process: edited in Postgres, obeyed by every process within a second.

A poller reads all of them together with the number of the newest revision, in one statement, and compares: a number
alone would not tell of a row that was removed, nor of a database that was restored. Requests read the book that the
last poll left. With Postgres away the last book stays in force; a process that starts without Postgres begins with the
definitions' defaults.
"""

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.db.models import Subquery

from features.definitions import GROUPS, DefaultPolicy
from features.models import PolicyRevision, TtlPolicy
from mlserve.cache.keys import PREDICTION
from mlserve.cache.policy import Policy, PolicyBook
from mlserve.poller import Poller

POLL_INTERVAL_S = 0.5
PREDICTION_SCHEMA = 1
PREDICTION_DEFAULT = DefaultPolicy(fresh_for_s=3600, grace_s=0, negative_ttl_s=0, use_l2=False)
"""A prediction's key holds its exact input, so it never goes stale; the TTL only bounds its stay. L2 is bypassed:
reading a prediction from Redis costs about ten times what computing it again costs."""


def default_policies() -> dict[str, DefaultPolicy]:
    """What a new installation starts with, by name."""
    return {**{group.name: group.policy for group in GROUPS.values()}, PREDICTION: PREDICTION_DEFAULT}


class _Book:
    def __init__(self) -> None:
        self.current: PolicyBook | None = None
        self.poller = Poller("policies", POLL_INTERVAL_S, self._poll)

    def _poll(self) -> None:
        newest = Subquery(PolicyRevision.objects.values("id")[:1])
        version, policies = 0, {}
        for row in TtlPolicy.objects.annotate(revision=newest):
            version, policies[row.name] = row.revision or 0, _in_force(row)
        found = PolicyBook(version, {**_defaults().policies, **policies}) if policies else _defaults()
        if self.current != found:
            self.current = found


_book = _Book()


def policies_in_force() -> PolicyBook:
    """The policies of this moment; two reads within one request may differ, so a request reads them once."""
    book = _book
    book.poller.ensure_started()
    if book.current is None:
        try:
            book.poller.poll_now()
        except (DatabaseError, InterfaceError):
            return _defaults()
    return book.current or _defaults()


def forget() -> None:
    """Stops polling and drops the book; the next `policies_in_force` begins anew."""
    global _book
    _book.poller.stop()
    _book = _Book()


def schema_of(name: str) -> int:
    """The schema number that copies under this policy must carry."""
    return GROUPS[name].schema if name in GROUPS else PREDICTION_SCHEMA


def _in_force(row: TtlPolicy) -> Policy:
    return _policy(
        row.name,
        row,
        fail_when_missing=row.on_missing == TtlPolicy.OnMissing.FAIL,
        proven=is_proven(row),
    )


def is_proven(row: TtlPolicy) -> bool:
    """A prediction never is. Its key holds its exact input: there is nothing that a relay could withdraw."""
    return row.freshness == TtlPolicy.Freshness.PROVEN and row.name != PREDICTION


def _defaults() -> PolicyBook:
    return PolicyBook(
        0,
        {
            name: _policy(name, policy, fail_when_missing=False, proven=False)
            for name, policy in default_policies().items()
        },
    )


def _policy(name: str, numbers: TtlPolicy | DefaultPolicy, *, fail_when_missing: bool, proven: bool) -> Policy:
    group = GROUPS.get(name)
    return Policy(
        namespace=name,
        schema=schema_of(name),
        fresh_for_s=numbers.fresh_for_s,
        grace_s=numbers.grace_s,
        negative_ttl_s=numbers.negative_ttl_s,
        use_l1=numbers.use_l1,
        use_l2=numbers.use_l2,
        fail_when_missing=fail_when_missing,
        proven=proven,
        bound_s=settings.FRESHNESS_BOUND_S,
        fixed_values=len(group.values) if group else 1,
        repeated_values=len(group.repeated) if group else 0,
    )
