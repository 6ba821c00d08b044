"""The relay, the engine and the doctor where L2 is sealed."""

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import redis
from django.core.management import call_command
from django.db import connection

from features.diagnosis import diagnose_relay
from features.policies import policies_in_force
from features.vectors import read_groups
from mlserve.cache import wiring
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import Tier
from mlserve.cache.seal import NO_SEAL, Seal, make_seal
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.watermark import Watermark, name_of, parse
from mlserve.platform.diagnosis import Level
from tests.fixtures.population import World

SECRET = "a secret of thirty-two characters"
GROUP = "merchant_risk"
KEY = Key("merchant", "sealed-1", GROUP)
NAMES = names_of(*KEY.entity, 1)
WM = name_of(0)
_WRITE = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES (%s, %s, '{1,1,1,1,1,1}', now())
ON CONFLICT ("group", entity_id) DO UPDATE SET as_of = now()
"""


@pytest.fixture
def cold(transactional_db: None, redis_client: redis.Redis) -> Iterator[redis.Redis]:
    """No epochs, an empty cache."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM features_cachepartition")
    yield redis_client
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM features_cachepartition")


def _relay() -> None:
    call_command("relay", "--once", stdout=StringIO())


def _mark(client: redis.Redis, seal: Seal) -> Watermark | None:
    return parse(client.get(WM) or b"", WM, seal)


def test_the_key_raises_the_epoch_once(cold: redis.Redis, settings: Any) -> None:
    """Set or taken away, what lies there is unreadable; after that each watermark continues the one before."""
    _relay()
    bare = _mark(cold, NO_SEAL)
    settings.CACHE_MAC_KEY = SECRET
    marks = []
    for _ in range(2):
        _relay()
        marks.append(_mark(cold, make_seal(SECRET)))
    settings.CACHE_MAC_KEY = ""
    _relay()
    again = _mark(cold, NO_SEAL)
    epochs = [mark.epoch if mark is not None else 0 for mark in (bare, *marks, again)]
    assert epochs[0] > 0
    assert epochs == [epochs[0], epochs[0] + 1, epochs[0] + 1, epochs[0] + 2]


def test_the_doctor_says_where_the_keys_differ(cold: redis.Redis, settings: Any) -> None:
    """A relay with another key, or with none, seals for nobody; the fix names the setting."""
    for relays, readers, level in (
        (SECRET, SECRET, Level.OK),
        (SECRET, SECRET + "!", Level.WARN),
        ("", SECRET, Level.WARN),
        (SECRET, "", Level.WARN),
    ):
        settings.CACHE_MAC_KEY = relays
        _relay()
        settings.CACHE_MAC_KEY = readers
        (found,) = diagnose_relay()
        assert found.level is level
        if level is Level.WARN:
            assert found.detail == "1 of 1 watermarks are none of ours"
            assert "MLSERVE_CACHE_MAC_KEY" in found.fix


def test_a_read_through_the_engine_fills_and_believes_sealed_copies(
    world: World, redis_client: redis.Redis, settings: Any
) -> None:
    """A proven group: from Postgres once, then from L2; and from Postgres again where somebody else has written."""
    assert not wiring.engine().seal.keyed
    settings.CACHE_MAC_KEY = SECRET
    assert wiring.engine().seal.keyed
    world.edit_policy(GROUP, freshness="proven", use_l1=False)
    with connection.cursor() as cursor:
        cursor.execute(_WRITE, [GROUP, KEY.id])
    _relay()

    def tier() -> Tier:
        engine = wiring.engine()
        reading = read_groups({GROUP: KEY}, book=policies_in_force(), request=RequestTier(), budget=engine.budget())
        engine.filler.flush()
        return reading.outcomes[KEY].tier

    tier()
    _relay()
    assert tier() is Tier.L2
    record = redis_client.hget(NAMES.record, GROUP)
    assert isinstance(record, bytes)
    redis_client.hset(NAMES.record, GROUP, record[:-20] + bytes([record[-20] ^ 1]) + record[-19:])
    _relay()
    assert tier() is Tier.L3
    _relay()
    assert tier() is Tier.L2
