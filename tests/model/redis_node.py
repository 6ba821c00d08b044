"""One Redis node as a value: the contents before a command, the reply to it, the contents after.

The model check visits the same few contents again and again in another order of events, so a node must be a value that
can be kept and gone back to, which a server cannot. The scripts are the real ones, run by the same Lua 5.1 as in the
server; below them stand the commands that they use, and no others: whatever is not here raises `NotImplementedError`.
`test_redis_node.py` compares it with a server, reply by reply.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple, cast

from lupa.lua51 import LuaError, LuaRuntime, lua_type
from redis.exceptions import NoScriptError, ResponseError

Hash = tuple[tuple[bytes, bytes], ...]
"""Fields and values, in order of the fields."""


class Stream(NamedTuple):
    last: tuple[int, int] = (0, 0)
    messages: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    """Id and fields with their values, of each."""


class Held(NamedTuple):
    """`until_ms` since 1970: None if it stays."""

    name: bytes
    value: bytes | Hash | Stream
    until_ms: int | None


Contents = tuple[Held, ...]
"""In order of the names: two nodes that hold the same are equal."""
EMPTY: Contents = ()
SCRIPTS = ("lease.lua", "fill.lua", "drop.lua", "release.lua", "batch.lua")
_NO_SCRIPT = "No matching script. Please use EVAL."
_WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
_STRUCT_FORMAT = ">I4I4"
"""The only one that the scripts use; Python calls it `>II`."""
_LUA_OF_REDIS = b"""
local raw, pack, unpack_ = ...
local redis = {pcall = raw}
function redis.call(...)
  local reply = raw(...)
  if type(reply) == 'table' and reply.err then error(reply.err, 0) end
  return reply
end
_G.redis, _G.struct = redis, {pack = pack, unpack = unpack_}
for _, name in ipairs{'os', 'io', 'package', 'require', 'dofile', 'loadfile', 'debug', 'python', 'module'} do
  _G[name] = nil
end
local function refuse(_, name)
  -- lupa looks for `debug` before each call.
  if name ~= 'debug' then error('Script attempted to access nonexistent global variable ' .. tostring(name), 0) end
end
setmetatable(_G, {__index = refuse, __newindex = refuse})
"""


@lru_cache
def text_of(script: str) -> bytes:
    """As it lies in the engine."""
    return files("mlserve.cache").joinpath("lua", script).read_bytes()


def name_of(digest: bytes) -> str:
    """Which script a digest stands for, for people."""
    return next(script for script in SCRIPTS if _digest_of(text_of(script)) == digest)


def scripts(changed: Mapping[str, bytes] | None = None) -> dict[bytes, bytes]:
    """What a node knows: the text under the digest of each script. `changed`: other texts for some of them."""
    return {_digest_of(text_of(name)): (changed or {}).get(name, text_of(name)) for name in SCRIPTS}


def _digest_of(text: bytes) -> bytes:
    return sha1(text, usedforsecurity=False).hexdigest().encode()


class Interpreter:
    """Runs commands. Not thread-safe. `known`: the scripts' texts by digest."""

    def __init__(self, known: Mapping[bytes, bytes]) -> None:
        self._known = dict(known)
        self._compiled: dict[bytes, Callable[[Any, Any], Any]] = {}
        self._lua = LuaRuntime(encoding=None, unpack_returned_tuples=True, register_eval=False, register_builtins=False)
        self._lua.execute(_LUA_OF_REDIS, self._from_script, _struct_pack, _struct_unpack)
        self._keys = _Keyspace(EMPTY, 0)

    def run(self, contents: Contents, parts: Sequence[bytes], *, now_us: int) -> tuple[Any, Contents]:
        """The reply as redis-py's parser hands it on, an error of the server as an exception that is not raised."""
        self._keys = _Keyspace(contents, now_us)
        verb = parts[0].upper()
        if verb not in (b"EVAL", b"EVALSHA"):
            return self._keys.run(parts), self._keys.contents()
        count = int(parts[2])
        digest = parts[1]
        if verb == b"EVAL":
            digest = _digest_of(parts[1])
            self._known.setdefault(digest, parts[1])
        if digest not in self._known:
            return NoScriptError(_NO_SCRIPT), contents
        return self._script(digest, parts[3 : 3 + count], parts[3 + count :]), self._keys.contents()

    def _script(self, digest: bytes, names: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        script = self._compiled.get(digest)
        if script is None:
            body = b"return function(KEYS, ARGV) " + self._known[digest] + b"\nend"
            script = self._compiled[digest] = cast("Callable[[Any, Any], Any]", self._lua.execute(body))
        try:
            return _to_reply(script(self._lua.table_from(list(names)), self._lua.table_from(list(arguments))))
        except LuaError as error:  # what it had done before stays done, as in the server
            return ResponseError(str(error))

    def _from_script(self, *arguments: Any) -> Any:
        return self._to_lua(self._keys.run([_to_argument(each) for each in arguments]))

    def _to_lua(self, reply: Any) -> Any:
        match reply:
            case None:
                return False
            case ResponseError():
                return self._lua.table_from({b"err": str(reply).encode()})
            case _Status():
                return self._lua.table_from({b"ok": bytes(reply)})
            case list():
                return self._lua.table_from([self._to_lua(each) for each in reply])
            case _:
                return reply


class _Status(bytes):
    """A reply that is no data: OK, or the name of a type."""


def _to_argument(value: Any) -> bytes:
    if isinstance(value, float):
        return b"%d" % int(value) if value.is_integer() else b"%.17g" % value
    return b"%d" % value if isinstance(value, int) else cast("bytes", value)


def _to_reply(value: Any) -> Any:
    match value:
        case None | False:
            return None
        case True:
            return 1
        case float():
            return int(value)
        case bytes() | int():
            return value
    assert lua_type(value) == "table", value
    if value[b"err"] is not None:
        return ResponseError(value[b"err"].decode())
    if value[b"ok"] is not None:
        return value[b"ok"]
    items, place = [], 1
    while (item := value[place]) is not None:
        items.append(_to_reply(item))
        place += 1
    return items


def _struct_pack(form: bytes, *numbers: float) -> bytes:
    _check_format(form)
    return struct.pack(">II", *[int(number) & 0xFFFFFFFF for number in numbers])


def _struct_unpack(form: bytes, packed: bytes) -> tuple[int, int, int]:
    _check_format(form)
    if len(packed) < 8:
        raise LuaError("data string too short")
    high, low = struct.unpack_from(">II", packed)
    return high, low, 9


def _check_format(form: bytes) -> None:
    if form.decode() != _STRUCT_FORMAT:
        raise NotImplementedError(f"struct format {form!r}")


class _WrongTypeError(Exception):
    pass


class _Keyspace:
    """Contents that can be changed, at one moment."""

    def __init__(self, contents: Contents, now_us: int) -> None:
        self._now_us = now_us
        self._now_ms = now_us // 1000
        self._held = {each.name: each for each in contents if each.until_ms is None or each.until_ms > self._now_ms}

    def contents(self) -> Contents:
        return tuple(sorted(self._held.values(), key=lambda held: held.name))

    def run(self, parts: Sequence[bytes]) -> Any:
        verb, arguments = parts[0].decode().upper(), list(parts[1:])
        command = _COMMANDS.get(verb)
        if command is None:
            raise NotImplementedError(verb)
        try:
            return command(self, *arguments)
        except _WrongTypeError:
            return ResponseError(_WRONG_TYPE)

    def _value(self, name: bytes, form: type[Any]) -> Any:
        held = self._held.get(name)
        if held is None:
            return None
        # A hash is a plain tuple, a stream one with names.
        if type(held.value) is not form:
            raise _WrongTypeError
        return held.value

    def _until(self, name: bytes) -> int | None:
        held = self._held.get(name)
        return held.until_ms if held else None

    # --- strings and keys ---

    def get(self, name: bytes) -> bytes | None:
        return cast("bytes | None", self._value(name, bytes))

    def set(self, name: bytes, value: bytes, *options: bytes) -> _Status | None:
        left, until_ms = list(options), None
        while left:
            match left.pop(0).upper():
                case b"NX":
                    if name in self._held:
                        return None
                case b"PX":
                    until_ms = self._now_ms + int(left.pop(0))
                case other:
                    raise NotImplementedError(f"SET {other!r}")
        self._held[name] = Held(name, value, until_ms)
        return _Status(b"OK")

    def delete(self, *names: bytes) -> int:
        return sum(self._held.pop(name, None) is not None for name in names)

    def strlen(self, name: bytes) -> int:
        return len(self._value(name, bytes) or b"")

    def type(self, name: bytes) -> _Status:
        held = self._held.get(name)
        if held is None:
            return _Status(b"none")
        return _Status({bytes: b"string", tuple: b"hash", Stream: b"stream"}[type(held.value)])

    def pttl(self, name: bytes) -> int:
        if name not in self._held:
            return -2
        until_ms = self._until(name)
        return -1 if until_ms is None else until_ms - self._now_ms

    def pexpire(self, name: bytes, keep_ms: bytes) -> int:
        held = self._held.get(name)
        if held is None:
            return 0
        self._held[name] = held._replace(until_ms=self._now_ms + int(keep_ms))
        return 1

    def time(self) -> list[bytes]:
        return [b"%d" % part for part in divmod(self._now_us, 1_000_000)]

    # --- hashes ---

    def _fields(self, name: bytes) -> dict[bytes, bytes]:
        return dict(self._value(name, tuple) or ())

    def _keep_fields(self, name: bytes, fields: Mapping[bytes, bytes]) -> None:
        if fields:
            self._held[name] = Held(name, tuple(sorted(fields.items())), self._until(name))
        else:
            self._held.pop(name, None)

    def hget(self, name: bytes, field: bytes) -> bytes | None:
        return self._fields(name).get(field)

    def hmget(self, name: bytes, *fields: bytes) -> list[bytes | None]:
        held = self._fields(name)
        return [held.get(field) for field in fields]

    def hset(self, name: bytes, *pairs: bytes) -> int:
        fields = self._fields(name)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        self._keep_fields(name, fields)
        return len(fields) - before

    def hdel(self, name: bytes, *names: bytes) -> int:
        fields = self._fields(name)
        gone = sum(fields.pop(field, None) is not None for field in names)
        self._keep_fields(name, fields)
        return gone

    # --- streams ---

    def xadd(self, name: bytes, *arguments: bytes) -> bytes:
        left = list(arguments)
        if left[0].upper() == b"MAXLEN":
            # Trimmed about: not before a hundred messages are too many, which no model and no test gets to.
            assert left[1] == b"~" and int(left[2]) > 100, left
            left = left[3:]
        if left.pop(0) != b"*":
            raise NotImplementedError("XADD with an id")
        stream: Stream = self._value(name, Stream) or Stream()
        last = (self._now_ms, 0) if self._now_ms > stream.last[0] else (stream.last[0], stream.last[1] + 1)
        message = (b"%d-%d" % last, tuple(left))
        self._held[name] = Held(name, Stream(last, (*stream.messages, message)), self._until(name))
        return message[0]

    def xrange(self, name: bytes, after: bytes, end: bytes, *count: bytes) -> list[list[Any]]:
        assert after[:1] == b"(" and end == b"+", (after, end)
        stream: Stream = self._value(name, Stream) or Stream()
        found = [each for each in stream.messages if _number(each[0]) > _number(after[1:])]
        return [[number, list(fields)] for number, fields in found[: int(count[1])]]

    def xrevrange(self, name: bytes, end: bytes, start: bytes, *count: bytes) -> list[list[Any]]:
        assert (end, start) == (b"+", b"-"), (end, start)
        stream: Stream = self._value(name, Stream) or Stream()
        return [[number, list(fields)] for number, fields in stream.messages[::-1][: int(count[1])]]


def _number(text: bytes) -> tuple[int, ...]:
    return tuple(map(int, text.split(b"-")))


_COMMANDS: dict[str, Callable[..., Any]] = {
    "GET": _Keyspace.get,
    "SET": _Keyspace.set,
    "DEL": _Keyspace.delete,
    "UNLINK": _Keyspace.delete,
    "STRLEN": _Keyspace.strlen,
    "TYPE": _Keyspace.type,
    "PTTL": _Keyspace.pttl,
    "PEXPIRE": _Keyspace.pexpire,
    "TIME": _Keyspace.time,
    "HGET": _Keyspace.hget,
    "HMGET": _Keyspace.hmget,
    "HSET": _Keyspace.hset,
    "HDEL": _Keyspace.hdel,
    "XADD": _Keyspace.xadd,
    "XRANGE": _Keyspace.xrange,
    "XREVRANGE": _Keyspace.xrevrange,
}
