"""Bytes in Redis are data, whoever put them there."""

import os
import pickle
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from django.core.cache import caches

from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.l1_locmem import MutableValueError
from mlserve.cache.wiring import engine, l2_client, reset
from tests.cache.doubles import entry, policy


class Bomb:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> Any:
        return os.getenv, ("PATH",)


@pytest.fixture(autouse=True)
def _no_engine_left() -> Iterator[None]:
    yield
    reset()


def test_the_watch_sees_an_unpickling(unpickled: list[str]) -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert unpickled == ["pickle.find_class"]


def test_a_pickle_in_redis_is_no_code(redis_client: redis.Redis, unpickled: list[str]) -> None:
    """The engine misses it; Django's alias raises an error of the decoder."""
    key, bomb = Key("customer", "c1", "group"), pickle.dumps(Bomb())
    redis_client.hset(names_of("customer", "c1", 1).record, "group", bomb)
    assert engine().l2.get_many([key], {"group": policy()}) == {key: MissReason.DECODE}
    redis_client.set(caches["l2"].make_key("bomb"), bomb)
    with pytest.raises(msgspec.DecodeError):
        caches["l2"].get("bomb")
    assert unpickled == []


def test_nothing_is_stored_as_a_pickle(redis_client: redis.Redis, unpickled: list[str]) -> None:
    """Neither by the engine nor through Django's aliases, whose plain values come back as they were."""
    key, policies = Key("customer", "c1", "group"), {"group": policy()}
    engine().l2.put_many({key: entry(7)}, policies)
    assert engine().l2.get_many([key], policies) == {key: entry(7)}
    value: dict[str, Any] = {"text": "ü", "numbers": [1, 2.5, None, True]}
    caches["l2"].set("plain", value, 60)
    assert caches["l2"].get("plain") == value
    records = redis_client.hvals(names_of("customer", "c1", 1).record)
    assert len(records) == 1
    stored = [redis_client.get(caches["l2"].make_key("plain")), *records]
    assert not any(b"\x80\x04\x95" in record or b"\x80\x05\x95" in record for record in stored if record)
    caches["l1"].set("plain", ("text", 1.5), 60)
    assert caches["l1"].get("plain") == ("text", 1.5)
    assert unpickled == []


def test_l1_refuses_what_could_change(unpickled: list[str]) -> None:
    """It hands out the object itself; the error names the type and what to use instead."""
    values: tuple[Any, ...] = ([1], {"a": 1}, ({},), bytearray(b"x"), Bomb())
    for value in values:
        with pytest.raises(MutableValueError, match="use a tuple"):
            caches["l1"].set("mutable", value)
    assert caches["l1"].get("mutable") is None
    assert unpickled == []


def test_the_l2_alias_connects_as_the_engine_does() -> None:
    """One pool with short time-outs and no retries: a frozen server costs one time-out, not eleven."""
    options = l2_client().connection_pool.connection_kwargs
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 0.05
    retry = options.get("retry")
    assert retry is None or retry.get_retries() == 0
