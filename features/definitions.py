"""Which features exist, of what, from where, and how fresh they must be. The one place that says so.

A *feature group* is what Postgres stores and the cache keeps: the features of one entity type that share source,
cadence and TTL policy. A *model feature* is one number of the model's input, derived at the transaction's moment
(`features/compute.py`) from the request and from one or two groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

Entity = Literal["customer", "merchant"]
Cadence = Literal["static", "batch", "streaming"]
WriteStrategy = Literal["through", "around", "behind"]
"""How a new value reaches the source and its copies: `writes.py` and `write_behind.py` carry these out."""

WINDOW_DAYS = (1, 7, 30)
LABEL_DELAY_DAYS = 7
"""Fraud is known a week after the transaction, so merchant windows end a week before it."""
EMBEDDING_SIZE = 16
EMBEDDING_BUILD = "build"
"""The value behind the components: which build's axes they are coordinates on; 0 if nobody knows."""
ACTIVITY_KEPT_DAYS = 31
"""The longest customer window and a day to spare for transactions that arrive late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultPolicy:
    """The TTL policy that a group starts with; the policy in force lives in Postgres."""

    fresh_for_s: float
    grace_s: float
    negative_ttl_s: float
    use_l1: bool = True
    use_l2: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    """One number of a group's stored values."""

    name: str
    unit: str
    default: float
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureGroup:
    """`schema` rises whenever the meaning or the order of `values` changes: older copies are misses."""

    name: str
    entity: Entity
    cadence: Cadence
    schema: int
    values: tuple[StoredValue, ...]
    policy: DefaultPolicy
    description: str
    repeated: tuple[StoredValue, ...] = ()
    """What may follow `values`, any number of times."""
    added_values: int = 0
    """How many of `values`, at the end, the rows of an earlier release do not have: they count as their defaults."""
    write: WriteStrategy = "around"

    def fits(self, values: Sequence[float]) -> bool:
        """Whether these can be the group's values: as many as it has, all of them finite."""
        more = len(values) - len(self.values)
        if more and (more < 0 or not self.repeated or more % len(self.repeated)):
            return False
        return isfinite(sum(values))

    def completed(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """A stored row's values, with the defaults of those that its release did not know."""
        if not self.added_values or len(values) != len(self.values) - self.added_values:
            return values
        return (*values, *(added.default for added in self.values[-self.added_values :]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFeature:
    """`groups` are the groups that it derives from; none means that the request alone determines it.

    `default` is what the model gets where the source knows nothing of the entity.
    """

    name: str
    unit: str
    default: float
    groups: tuple[str, ...]
    description: str


_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S

CUSTOMER_PROFILE = FeatureGroup(
    name="customer_profile",
    entity="customer",
    cadence="static",
    schema=1,
    description="Who the customer usually is, over the whole history up to the build.",
    policy=DefaultPolicy(fresh_for_s=_DAY_S, grace_s=_DAY_S, negative_ttl_s=30),
    values=(
        StoredValue(name="first_seen", unit="s since 1970", default=0.0, description="first transaction"),
        StoredValue(name="amount_mean", unit="currency", default=0.0, description="mean amount"),
        StoredValue(name="amount_deviation", unit="currency", default=0.0, description="population deviation"),
    ),
)
CUSTOMER_ACTIVITY = FeatureGroup(
    name="customer_activity",
    entity="customer",
    cadence="streaming",
    schema=1,
    description=(
        "The recent transactions themselves, from which the windows are derived at read time: first the moment from "
        "which on the list is complete (s since 1970), then time (s), amount and tag of each, oldest first."
    ),
    # Other processes' L1 copies do not hear of a write, so this group is read from L2, which the writer updates.
    policy=DefaultPolicy(fresh_for_s=60, grace_s=600, negative_ttl_s=5, use_l1=False),
    values=(
        StoredValue(name="complete_from", unit="s since 1970", default=0.0, description="nothing later is missing"),
    ),
    repeated=(
        StoredValue(name="time", unit="s since 1970", default=0.0, description="of one transaction, oldest first"),
        StoredValue(name="amount", unit="currency", default=0.0, description="its amount"),
        StoredValue(name="tag", unit="", default=0.0, description="32 bits of its id's digest"),
    ),
    write="through",
)
MERCHANT_PROFILE = FeatureGroup(
    name="merchant_profile",
    entity="merchant",
    cadence="static",
    schema=1,
    description="What the merchant usually sells, over the whole history up to the build.",
    policy=DefaultPolicy(fresh_for_s=_DAY_S, grace_s=_DAY_S, negative_ttl_s=30),
    values=(
        StoredValue(name="first_seen", unit="s since 1970", default=0.0, description="first transaction"),
        StoredValue(name="typical_ticket", unit="currency", default=0.0, description="mean amount"),
    ),
)
MERCHANT_RISK = FeatureGroup(
    name="merchant_risk",
    entity="merchant",
    cadence="batch",
    schema=1,
    description="Transactions and their share of fraud over windows that end seven days before the build.",
    policy=DefaultPolicy(fresh_for_s=_HOUR_S, grace_s=6 * _HOUR_S, negative_ttl_s=30),
    values=tuple(
        StoredValue(name=f"{what}_{days}d", unit=unit, default=0.0, description=f"{text} over {days} d, delayed 7 d")
        for days in WINDOW_DAYS
        for what, unit, text in (("count", "transactions", "transactions"), ("risk", "share", "share of fraud"))
    ),
)
MERCHANT_TRAFFIC = FeatureGroup(
    name="merchant_traffic",
    entity="merchant",
    cadence="streaming",
    schema=1,
    description=(
        "What was asked for the merchant since the group exists. For people, no model reads it: it is written behind, "
        "seconds late, and a process that is killed loses its last second of it."
    ),
    # As old as the flush that wrote it, which no other process' L1 hears of.
    policy=DefaultPolicy(fresh_for_s=_HOUR_S, grace_s=_DAY_S, negative_ttl_s=5, use_l1=False),
    values=(
        StoredValue(name="scores_total", unit="scores", default=0.0, description="scores given, without dry runs"),
        StoredValue(name="last_score_at", unit="s since 1970", default=0.0, description="the newest of them"),
        StoredValue(name="amount_total", unit="currency", default=0.0, description="their amounts, currencies mixed"),
    ),
    write="behind",
)


def _embedding(entity: Entity) -> FeatureGroup:
    return FeatureGroup(
        name=f"{entity}_embedding",
        entity=entity,
        cadence="batch",
        schema=2,
        description=(
            "Place among all customers and merchants by who pays whom: a truncated SVD. The axes of two builds have "
            "nothing in common, so the number of the build stands beside the place."
        ),
        policy=DefaultPolicy(fresh_for_s=6 * _HOUR_S, grace_s=_DAY_S, negative_ttl_s=30),
        values=(
            *(
                StoredValue(name=f"e{i}", unit="", default=0.0, description=f"component {i}")
                for i in range(EMBEDDING_SIZE)
            ),
            StoredValue(name=EMBEDDING_BUILD, unit="", default=0.0, description="number of the build, a digest of it"),
        ),
        added_values=1,
    )


CUSTOMER_EMBEDDING = _embedding("customer")
MERCHANT_EMBEDDING = _embedding("merchant")

EMBEDDINGS = (CUSTOMER_EMBEDDING.name, MERCHANT_EMBEDDING.name)
"""Of one build or of no use together."""

GROUPS: dict[str, FeatureGroup] = {
    group.name: group
    for group in (
        CUSTOMER_PROFILE,
        CUSTOMER_ACTIVITY,
        CUSTOMER_EMBEDDING,
        MERCHANT_PROFILE,
        MERCHANT_RISK,
        MERCHANT_EMBEDDING,
        MERCHANT_TRAFFIC,
    )
}
BUILT_GROUPS: tuple[str, ...] = tuple(group.name for group in GROUPS.values() if group.write != "behind")
"""Those that follow from the ledger, so that a build can write them anew."""
GROUPS_OF_ENTITY: dict[str, tuple[FeatureGroup, ...]] = {
    entity: tuple(group for group in GROUPS.values() if group.entity == entity) for entity in ("customer", "merchant")
}


def _customer_window_features() -> tuple[ModelFeature, ...]:
    return tuple(
        ModelFeature(
            name=f"customer_{what}_{days}d", unit=unit, default=0.0, groups=("customer_activity",), description=text
        )
        for days in WINDOW_DAYS
        for what, unit, text in (
            ("count", "transactions", f"transactions of the customer in the last {days} d, this one included"),
            ("mean_amount", "currency", f"their mean amount over {days} d, this one included"),
        )
    )


def _merchant_window_features() -> tuple[ModelFeature, ...]:
    return tuple(
        ModelFeature(
            name=f"merchant_{stored.name}",
            unit=stored.unit,
            default=0.0,
            groups=("merchant_risk",),
            description=stored.description,
        )
        for stored in MERCHANT_RISK.values
    )


MODEL_FEATURES: dict[str, ModelFeature] = {
    feature.name: feature
    for feature in (
        ModelFeature(name="amount", unit="currency", default=0.0, groups=(), description="amount of this transaction"),
        ModelFeature(name="is_weekend", unit="0 or 1", default=0.0, groups=(), description="Saturday or Sunday, UTC"),
        ModelFeature(name="is_night", unit="0 or 1", default=0.0, groups=(), description="hour 0 to 6, UTC"),
        *_customer_window_features(),
        *_merchant_window_features(),
        ModelFeature(
            name="customer_age_days",
            unit="d",
            default=0.0,
            groups=("customer_profile",),
            description="since the customer's first transaction",
        ),
        ModelFeature(
            name="amount_to_usual",
            unit="ratio",
            default=1.0,
            groups=("customer_profile",),
            description="amount over the customer's usual amount",
        ),
        ModelFeature(
            name="amount_deviations",
            unit="deviations",
            default=0.0,
            groups=("customer_profile",),
            description="distance from the customer's usual amount in that customer's deviations",
        ),
        ModelFeature(
            name="merchant_age_days",
            unit="d",
            default=0.0,
            groups=("merchant_profile",),
            description="since the merchant's first transaction",
        ),
        ModelFeature(
            name="amount_to_ticket",
            unit="ratio",
            default=1.0,
            groups=("merchant_profile",),
            description="amount over the merchant's typical ticket",
        ),
        ModelFeature(
            name="affinity",
            unit="cosine",
            default=0.0,
            groups=("customer_embedding", "merchant_embedding"),
            description="how well the merchant fits what this customer pays",
        ),
    )
}
BASELINE_FEATURES: tuple[str, ...] = tuple(MODEL_FEATURES)[:15]
"""The fifteen of the Fraud Detection Handbook (Le Borgne et al. 2022, chapter 3)."""
ALL_FEATURES: tuple[str, ...] = tuple(MODEL_FEATURES)
MODEL_GROUPS = frozenset(group for feature in MODEL_FEATURES.values() for group in feature.groups)
"""What a score may read."""
