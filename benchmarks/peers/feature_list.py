"""The fifty numbers that a score reads of its customer and its merchant, as a feature store would keep them.

All stored values of the groups that the model's features derive from. Only the list of a customer's recent transactions
has no place in a store of single numbers: there stand the windows that the score derives from it at each request, as
they were when the store was filled. That is less work for the store than for the score.
"""

from collections.abc import Mapping, Sequence

from features.compute import activity_windows
from features.definitions import (
    CUSTOMER_ACTIVITY,
    EMBEDDING_BUILD,
    GROUPS_OF_ENTITY,
    MODEL_FEATURES,
    MODEL_GROUPS,
    FeatureGroup,
    StoredValue,
)

_WINDOWS: tuple[str, ...] = tuple(
    name for name, feature in MODEL_FEATURES.items() if feature.groups == (CUSTOMER_ACTIVITY.name,)
)


def groups_read(entity: str) -> tuple[FeatureGroup, ...]:
    """The groups of a customer or a merchant that a score reads."""
    return tuple(group for group in GROUPS_OF_ENTITY[entity] if group.name in MODEL_GROUPS)


def _features_of(group: FeatureGroup) -> list[StoredValue]:
    """Without the number of a build, which is none."""
    return [value for value in group.values if value.name != EMBEDDING_BUILD]


def _names(entity: str) -> tuple[str, ...]:
    names: list[str] = []
    for group in groups_read(entity):
        names += [f"{group.name}_{value.name}" for value in _features_of(group)]
        if group is CUSTOMER_ACTIVITY:
            names += _WINDOWS
    return tuple(names)


FEATURES: dict[str, tuple[str, ...]] = {entity: _names(entity) for entity in GROUPS_OF_ENTITY}
"""By entity. No name stands in both."""


def values_of(entity: str, stored: Mapping[str, Sequence[float]], *, at: float, amount: float) -> tuple[float, ...]:
    """In the order of `FEATURES`. `stored`: by group; `at` and `amount`: of the transaction that the windows count."""
    values: list[float] = []
    for group in groups_read(entity):
        held = stored[group.name]
        values += held[: len(_features_of(group))]
        if group is CUSTOMER_ACTIVITY:
            values += activity_windows(held, at=at, amount=amount, tag=None).values
    return tuple(values)
