"""The buckets that all processes share, in L2's Redis (`lua/bucket.lua`). Nothing is raised."""

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

import msgspec
from redis.exceptions import NoScriptError

from mlserve.api.limit import Limit
from mlserve.cache.tiers.wire import Command, Wire, pack

RESERVED_MS: Final = 1_500
"""For what a process holds. Longer than a process believes that it holds it (`allowance.HELD_FOR_S`)."""


class Wish(msgspec.Struct, frozen=True, gc=False):
    """Of one process about one key, in units. `held` is what it has and keeps, `back` what it gives back."""

    key: str
    limit: Limit
    held: int = 0
    back: int = 0
    need: int = 0
    ahead: int = 0


class Grant(msgspec.Struct, frozen=True, gc=False):
    """`granted`: all that was needed, or nothing. `left`: units in the bucket. `holders`: processes that use it."""

    granted: bool
    ahead: int
    left: int
    wait_s: float
    holders: int


class SharedBuckets:
    """`holder` names this process, and no other that lives."""

    def __init__(self, wire: Callable[[], Wire], holder: str) -> None:
        self._wire = wire
        self._holder = holder.encode()

    def ask(self, wishes: Sequence[Wish]) -> list[Grant | None]:
        """All in one round trip; None where Redis did not answer, or not what its script says."""
        replies = self._wire().ask([self._command(b"EVALSHA", _digest(), wish) for wish in wishes])
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # a server that is new or was restarted: the text, once, teaches it
            again = self._wire().ask([self._command(b"EVAL", _text(), wishes[place]) for place in unknown])
            for place, reply in zip(unknown, again, strict=True):
                replies[place] = reply
        return [_read(reply) for reply in replies]

    def _command(self, verb: bytes, script: bytes, wish: Wish) -> Command:
        name = name_of(wish.key)
        numbers = (wish.held, wish.back, wish.need, wish.ahead, wish.limit.per_s, wish.limit.burst, RESERVED_MS)
        return Command(name, pack(verb, script, b"1", name, self._holder, *[b"%d" % number for number in numbers]))


def name_of(key: str) -> bytes:
    """Of the bucket in Redis. The braces say what decides its place in a cluster."""
    return b"mlr:{%b}" % key.encode()


def _read(reply: Any) -> Grant | None:
    match reply:
        case [int(granted), int(ahead), int(left), int(wait_ms), int(holders)]:
            return Grant(granted == 1, ahead, left, wait_ms / 1000, holders)
    return None


@cache
def _text() -> bytes:
    return files("mlserve.api").joinpath("lua", "bucket.lua").read_bytes()


@cache
def _digest() -> bytes:
    """As Redis names scripts; no secret depends on it."""
    return sha1(_text(), usedforsecurity=False).hexdigest().encode()
