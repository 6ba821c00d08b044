"""Writes `definitions.py` into its tables after every migrate; policies that exist keep what operators set."""

from typing import Any

from features.definitions import GROUPS, MODEL_FEATURES
from features.models import FeatureGroupRecord, FeatureRecord, TtlPolicy
from features.policies import default_policies


def synchronise_definitions(**_: Any) -> None:
    """Idempotent. Groups and features that left the code leave the tables."""
    for group in GROUPS.values():
        FeatureGroupRecord.objects.update_or_create(
            name=group.name,
            defaults={
                "entity": group.entity,
                "cadence": group.cadence,
                "schema": group.schema,
                "write": group.write,
                "description": group.description,
            },
        )
    for feature in MODEL_FEATURES.values():
        record, _created = FeatureRecord.objects.update_or_create(
            name=feature.name,
            defaults={"unit": feature.unit, "default": feature.default, "description": feature.description},
        )
        record.groups.set(FeatureGroupRecord.objects.filter(name__in=feature.groups))
    FeatureRecord.objects.exclude(name__in=MODEL_FEATURES).delete()
    FeatureGroupRecord.objects.exclude(name__in=GROUPS).delete()
    for name, policy in default_policies().items():
        TtlPolicy.objects.get_or_create(
            name=name,
            defaults={
                "fresh_for_s": policy.fresh_for_s,
                "grace_s": policy.grace_s,
                "negative_ttl_s": policy.negative_ttl_s,
                "use_l1": policy.use_l1,
                "use_l2": policy.use_l2,
            },
        )
