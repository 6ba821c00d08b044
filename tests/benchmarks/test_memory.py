"""What an entity takes in Redis: that the benchmark runs, and that the layouts beside ours are what they say."""

import struct
from random import Random

import pytest
import redis

from benchmarks import contest
from benchmarks.layouts import as_feast, as_json
from benchmarks.memory import FEATURES, contests, features
from features.progress import silent


def test_the_memory_benchmark_finds_ours_smaller(redis_client: redis.Redis) -> None:
    """With a few hundred entities already: bytes are no matter of the machine's speed."""
    json, feast = (
        contest.run(each, seconds=0.01, progress=silent, rounds=2) for each in contests(redis_client, entities=300)
    )
    assert (json.name, feast.name) == ("memory-json", "memory-feast")
    assert json.ours == feast.ours and json.other > feast.other > feast.ours > 100
    assert json.ratio.max < 0.5


def test_an_entitys_features_are_counts_amounts_and_shares() -> None:
    """A third of each, the last two thirds not whole and each exact in its own way."""
    values = features(Random(3))
    counts, amounts, shares = values[:17], values[17:34], values[34:]
    assert len(values) == FEATURES and len(shares) == 16
    assert all(count.is_integer() for count in counts)
    assert all(round(amount * 100) / 100 == amount for amount in amounts)
    assert all(struct.unpack("<f", struct.pack("<f", share)) == (share,) for share in shares)


def test_feasts_layout_has_a_field_for_each_feature_and_one_for_the_time() -> None:
    """As in Feast's own description: Murmur3, a double behind its tag, seconds as a varint."""
    key, fields = as_feast("C1", (0.5, 7.0), as_of=1_700_000_000.5)
    assert key == b"\2\0\0\0customer_id\2\0\0\0\2\0\0\0C1fraud_detection"
    assert fields.pop(b"_ts:customer_features") == b"\x08\x80\xe2\xcf\xaa\x06"
    assert [len(name) for name in fields] == [4, 4]
    assert list(fields.values()) == [b"\x29" + struct.pack("<d", 0.5), b"\x29" + struct.pack("<d", 7.0)]


def test_json_has_a_field_for_each_feature() -> None:
    assert as_json("C1", (0.5, 7.0)) == (b"customer:C1", {b"feature_0": b"0.5", b"feature_1": b"7.0"})


@pytest.mark.parametrize("other", [0, 1])
def test_a_layout_is_measured_anew_for_another_population_only(redis_client: redis.Redis, other: int) -> None:
    """The same bytes again take the same."""
    one = contests(redis_client, entities=50)[other]
    one.prepare()
    first = one.other(0.0)
    redis_client.flushall()
    assert one.other(0.0) == first
