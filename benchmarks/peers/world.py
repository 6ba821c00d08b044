"""`python -m benchmarks.peers.world FOLDER`: what peers serve, out of the database that scores are served from.

Writes the trained estimator to FOLDER and says the features of everybody who is scored: their ids come on stdin.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

import django
import msgspec

from benchmarks.child import say, told
from benchmarks.peers.feature_list import groups_read, values_of

ESTIMATOR = "estimator.skops"
AMOUNT = 20.0
"""Of every transaction that is scored."""


class PeerWorld(msgspec.Struct, frozen=True):
    """`features`: by entity and id, in the order of `feature_list.FEATURES`. `as_of`: the moment of the windows."""

    features: dict[str, dict[str, tuple[float, ...]]]
    as_of: datetime


def main(folder: Path) -> None:
    django.setup()
    # Only importable once Django is set up, which is this module's own first step.
    from predictions.models import Activation

    active = Activation.objects.select_related("model_version__artifact").first()
    assert active is not None, "the world has a model"
    (folder / ESTIMATOR).write_bytes(bytes(active.model_version.artifact.skops))
    for ids in told():
        say(_world(ids, now=datetime.now(UTC)))


def _world(ids: dict[str, list[str]], *, now: datetime) -> PeerWorld:
    from features.source import read_source
    from mlserve.cache.keys import Key

    keys = [Key(entity, one, group.name) for entity in ids for one in ids[entity] for group in groups_read(entity)]
    found = {key: entry.values for key, entry in read_source(keys).items()}
    features: dict[str, dict[str, tuple[float, ...]]] = {}
    for entity in ids:
        features[entity] = {}
        for one in ids[entity]:
            stored = {group.name: found[Key(entity, one, group.name)] or () for group in groups_read(entity)}
            features[entity][one] = values_of(entity, stored, at=now.timestamp(), amount=AMOUNT)
    return PeerWorld(features, now)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
