"""What is in force according to Postgres: the limits of the TTL policies and the model that serves.

The platform imports no app, so the two tables are named, not imported.
"""

from datetime import datetime

import msgspec
from django.apps import apps
from django.db import Error

_PROVEN = "proven"
_NEVER_PROVEN = "prediction"
"""Whatever its policy says: the key of a prediction names what it was computed from."""


class ServingModel(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    version: int
    estimator: str
    since: datetime


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """`fresh_for_s` by feature group; `proven` are those whose freshness is to be proven.

    `model` is None if nothing has been activated. `error` says why it is empty.
    """

    fresh_for_s: dict[str, float]
    model: ServingModel | None
    proven: tuple[str, ...] = ()
    error: str = ""


def read_in_force() -> InForce:
    """Two queries. Never raises for a database that is away or not migrated yet."""
    try:
        policies = apps.get_model("features", "TtlPolicy").objects.values_list("name", "fresh_for_s", "freshness")
        limits = {name: fresh_for_s for name, fresh_for_s, _ in policies}
        proven = {name for name, _, freshness in policies if freshness == _PROVEN} - {_NEVER_PROVEN}
        activation = (
            apps.get_model("predictions", "Activation").objects.select_related("model_version").order_by("-id").first()
        )
    except Error as error:
        return InForce(fresh_for_s={}, model=None, error=str(error).strip().partition("\n")[0])
    if activation is None:
        return InForce(fresh_for_s=limits, model=None, proven=tuple(sorted(proven)))
    served = activation.model_version
    return InForce(
        fresh_for_s=limits,
        proven=tuple(sorted(proven)),
        model=ServingModel(
            id=served.pk,
            name=served.name,
            version=served.version,
            estimator=served.estimator,
            since=activation.at,
        ),
    )
