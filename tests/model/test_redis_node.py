"""The model's node against a real one."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from mlserve.cache import bus
from mlserve.cache.breaker import Breaker
from mlserve.cache.codec import IDENTITY_BYTES
from mlserve.cache.tiers.wire import Command, SingleNodeWire, Wire, pack
from tests.fixtures.clock import ManualClock
from tests.model.redis_node import EMPTY, SCRIPTS, Contents, Held, Interpreter, scripts, text_of
from tests.model.redis_node import Stream as ModelStream

RECORD, LEASE, WM, BUS = (b"ml2:{0}:" + name for name in (b"v", b"l", b"wm", b"bus"))
NAMES = (RECORD, LEASE, WM, BUS)
SEQUENCES, CALLS = 120, 25
_FIELDS = (b"f1", b"f2")
_VERSIONS = (0, 1, 2, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1)
_RECORDS = tuple(
    version.to_bytes(8, "big") + kind + written.to_bytes(8, "big") + body
    for version in _VERSIONS
    for kind, body in ((b"V", b"body"), (b"N", b""), (b"T", b""), (b"?", b""))
    for written in (0, 2**40 + 7)
)
_JUNK = (b"", b"short", b"x" * 40)
_WATERMARKS = (b"", b"wm1", b"wm2", b"?")
_LIVES_MS = (b"30000", b"60000", b"90000")
_NEARLY_MS = 5_000
"""Less than between two of these lives, and more than a sequence takes."""


class _Pair:
    """The same commands to both."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._model = Interpreter(scripts())
        self.contents: Contents = EMPTY

    def server(self, *parts: bytes) -> Any:
        (reply,) = self._wire.ask([Command(NAMES[0], pack(*parts))], shed=False)
        return reply

    def now_us(self) -> int:
        seconds, rest = self.server(b"TIME")
        return int(seconds) * 1_000_000 + int(rest)

    def run(self, *parts: bytes) -> tuple[Any, Any]:
        now_us = self.now_us()
        real = self.server(*parts)
        model, self.contents = self._model.run(self.contents, parts, now_us=now_us)
        return real, model

    def real_contents(self) -> Iterator[tuple[Held, int]]:
        """What lies in the server, and how many milliseconds of its life are left."""
        for name in sorted(NAMES):
            match self.server(b"TYPE", name):
                case b"string":
                    value: Any = self.server(b"GET", name)
                case b"hash":
                    flat = self.server(b"HGETALL", name)
                    flat = [part for pair in flat.items() for part in pair] if isinstance(flat, dict) else flat
                    value = tuple(sorted(zip(flat[::2], flat[1::2], strict=True)))
                case b"stream":
                    messages = self.server(b"XRANGE", name, b"-", b"+")
                    value = ModelStream(messages=tuple((number, tuple(fields)) for number, fields in messages))
                case b"none":
                    continue
            yield Held(name, value, None), int(self.server(b"PTTL", name))


@pytest.fixture
def pair(redis_client: redis.Redis) -> _Pair:
    # A timeout of its own: here nobody is in a hurry.
    return _Pair(SingleNodeWire(lambda: redis_client, Breaker("l2", ManualClock())))


def _a_command(chance: random.Random) -> Sequence[bytes]:
    pick = chance.choice
    record = pick((*_RECORDS, *_JUNK))
    match chance.randrange(12):
        case 0:
            return pick(
                (
                    (b"SET", pick(NAMES), pick((b"a", b"wm1", record))),
                    (b"HSET", pick(NAMES), pick(_FIELDS), record),
                    (b"XADD", pick(NAMES), b"MAXLEN", b"~", b"2000", b"*", b"field", record),
                )
            )
        case 1:
            return pick(
                (
                    (b"DEL", pick(NAMES), pick(NAMES)),
                    (b"SET", LEASE, pick((b"a", b"b")), b"NX", b"PX", pick(_LIVES_MS)),
                    (b"PEXPIRE", pick(NAMES), pick(_LIVES_MS)),
                    (b"HDEL", pick(NAMES), *_FIELDS),
                )
            )
        case 2:
            return pick(
                (
                    (b"GET", pick(NAMES)),
                    (b"HMGET", pick(NAMES), *_FIELDS),
                    (b"HGET", pick(NAMES), pick(_FIELDS)),
                    (b"STRLEN", pick(NAMES)),
                    (b"TYPE", pick(NAMES)),
                    (b"XREVRANGE", BUS, b"+", b"-", b"COUNT", b"1"),
                    (b"XRANGE", BUS, b"(0-0", b"+", b"COUNT", b"3"),
                )
            )
        case 3 | 4 | 5:
            seen = (b"", b"T", b"*", b"!", record[:IDENTITY_BYTES])
            pairs = [part for field in _FIELDS[: chance.randint(1, 2)] for part in (field, pick(seen))]
            return _script("lease.lua", (RECORD, LEASE, WM), (pick((b"a", b"b")), pick(_LIVES_MS), *pairs))
        case 6 | 7 | 8:
            puts = [
                part for field in _FIELDS[: chance.randint(1, 2)] for part in (field, pick(_RECORDS), pick(_LIVES_MS))
            ]
            token, only_held = pick((b"a", b"b", b"")), pick((b"0", b"1"))
            return _script("fill.lua", (RECORD, LEASE), (token, only_held, *puts))
        case 9:
            return _script("drop.lua", (RECORD, LEASE), _FIELDS[: chance.randint(1, 2)])
        case 10:
            return _script("release.lua", (LEASE,), (pick((b"a", b"b")),))
        case _:
            fields = _FIELDS[: chance.randint(0, 2)]
            versions = [part for field in fields for part in (field, pick(_VERSIONS).to_bytes(8, "big"))]
            change = (pick((b"0", b"1")), b"%d" % len(fields), *versions) if fields else ()
            names = (WM, BUS, RECORD, LEASE) if fields else (WM, BUS)
            longest, told = pick((b"2", b"1000")), b"changed"
            fixed = (
                pick(_WATERMARKS),
                pick(_WATERMARKS[1:3]),
                longest,
                pick(_LIVES_MS),
                told,
                b"%d" % bus.MOST_MESSAGES,
            )
            return _script("batch.lua", names, (*fixed, *change))


def _script(name: str, names: Sequence[bytes], arguments: Sequence[bytes]) -> Sequence[bytes]:
    return (b"EVAL", text_of(name), b"%d" % len(names), *names, *arguments)


def _without_moments(value: Any) -> Any:
    """Streams without their numbers, tombstones without the moment at which they were written; of any depth."""
    match value:
        case bytes():
            is_tombstone = len(value) == IDENTITY_BYTES and value[8:9] == b"T"
            return value[:9] if is_tombstone else value
        case ModelStream():
            return [fields for _, fields in value.messages]
        case list() | tuple():
            return [_without_moments(each) for each in value]
        case ResponseError():
            return ResponseError
    return value


def _same(real: Any, model: Any) -> bool:
    return bool(_without_moments(real) == _without_moments(model))


def _numberless(verb: bytes, reply: Any) -> Any:
    """Without the numbers that a stream gives to messages: they are moments."""
    if verb == b"XADD" and not isinstance(reply, Exception):
        return "a number"
    if verb in (b"XRANGE", b"XREVRANGE") and not isinstance(reply, Exception):
        return [fields for _, fields in reply]
    return reply


@pytest.mark.parametrize("part", range(4))
def test_the_models_node_does_what_a_server_does(pair: _Pair, part: int) -> None:
    """Whatever lies there, of whatever type: the same replies, the same contents, lives of the same length."""
    chance = random.Random(part)
    scripts_run = set()
    for _ in range(SEQUENCES // 4):
        pair.run(b"DEL", *NAMES)
        for _ in range(CALLS):
            parts = _a_command(chance)
            scripts_run.add(parts[1])
            real, model = pair.run(*parts)
            said = f"{parts}: {real!r} from the server, {model!r} from the model"
            assert _same(_numberless(parts[0], real), _numberless(parts[0], model)), said
        held = list(pair.real_contents())
        assert [each.name for each, _ in held] == [each.name for each in pair.contents]
        now_ms = pair.now_us() // 1000
        for (each, left_ms), of_model in zip(held, pair.contents, strict=True):
            assert _same(each.value, of_model.value), of_model
            life_ms = -1 if of_model.until_ms is None else of_model.until_ms - now_ms
            assert (left_ms == -1) == (life_ms == -1) and abs(left_ms - life_ms) < _NEARLY_MS, of_model
    assert scripts_run >= {text_of(script) for script in SCRIPTS}


def test_what_the_model_does_not_know_it_refuses() -> None:
    """A script that uses another command stops the model instead of passing it."""
    with pytest.raises(NotImplementedError, match="INCR"):
        Interpreter(scripts()).run(EMPTY, (b"EVAL", b"return redis.call('INCR', 'a')", b"0"), now_us=0)
