"""What `GET /v1/features` and `GET /v1/policies` show, as types."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from features.definitions import GROUPS
from features.models import PolicyRevision, TtlPolicy
from mlserve.api.moments import Instant


class CopyShown(msgspec.Struct, frozen=True, kw_only=True):
    """What one tier holds. `negative` means that the tier remembers that the source knows nothing.

    `as_of` is when the source computed the values; `written_at` when this tier got its copy.
    """

    tier: str
    negative: bool
    version: int
    as_of: Instant
    written_at: Instant
    age_s: float
    max_age_s: float
    stale: bool


class GroupShown(msgspec.Struct, frozen=True, kw_only=True):
    """One feature group. `values` are what Postgres says now: by name, or a list where the group is a list."""

    group: str
    values: dict[str, float] | list[float] | None
    copies: list[CopyShown]


class EntityShown(msgspec.Struct, frozen=True, kw_only=True):
    """What every tier holds of an entity, in this process for L1."""

    entity: str
    id: str
    at: Instant
    groups: list[GroupShown]


class InvalidatedShown(msgspec.Struct, frozen=True, kw_only=True):
    """`delivered` is False while Redis cannot be told; the invalidation is then pending and follows."""

    entity: str
    id: str
    groups: list[str]
    delivered: bool


class PolicyShown(msgspec.Struct, frozen=True, kw_only=True):
    """How long copies of a feature group (or of predictions) count as fresh, in seconds."""

    name: str
    fresh_for_s: float
    grace_s: float
    negative_ttl_s: float
    freshness: str
    """`ttl`: by age alone; `proven`: copies serve only while a relay vouches for them."""
    use_l1: bool
    use_l2: bool
    on_missing: str
    updated_at: Instant
    write: str | None = None
    """`through`, `around` or `behind`, as the group's definition says; null for predictions, which nobody writes."""


class PolicyList(msgspec.Struct, frozen=True):
    """`policy_version` rises with every edit; each score names the one that it was given under."""

    policy_version: int
    policies: list[PolicyShown]


def show_entity(*, entity: str, entity_id: str, peeked: Sequence[dict[str, Any]], at: datetime) -> EntityShown:
    """`features.vectors.peek_entity`'s answer, its moments as times in UTC."""
    groups = [
        GroupShown(
            group=found["group"],
            values=found["values"],
            copies=[_shown(copy) for copy in found["copies"]],
        )
        for found in peeked
    ]
    return EntityShown(entity=entity, id=entity_id, at=at, groups=groups)


def list_policies() -> PolicyList:
    """The policies as Postgres has them now; processes follow within a second."""
    newest = PolicyRevision.objects.values_list("id", flat=True).first()
    return PolicyList(
        policy_version=newest or 0,
        policies=[_policy_shown(policy) for policy in TtlPolicy.objects.all()],
    )


def _policy_shown(policy: TtlPolicy) -> PolicyShown:
    shown = msgspec.convert(policy, PolicyShown, from_attributes=True)
    group = GROUPS.get(policy.name)
    return msgspec.structs.replace(shown, write=group.write) if group else shown


def _shown(copy: dict[str, Any]) -> CopyShown:
    moments = {name: datetime.fromtimestamp(copy[name], UTC) for name in ("as_of", "written_at")}
    return CopyShown(**{**copy, **moments})
