"""The guards of the proof, each taken away in the processes of one run, to see whether the checker misses it.

Nothing in the application knows of this: before the children are forked, lines of the scripts and functions are
replaced here. What is not there any more in the form that is to be replaced ends the run.

A run of minutes sees few of the orders of events that there are. So a run without a guard has the faults that aim at it
(`faults`): each guard is for one order of events, and the fault that brings it about may come once a minute among all
others. All of them strike in a run of the whole proof as well. `found_by` says what to expect then: "run", a violation
within a minute, in at least 19 of 20 runs (`--seeds` measures it); "chance", only with more luck than that; "model",
none, and the model check (`tests/model/`), which goes through all orders, is what shows that the guard is needed, or
that another one makes it redundant for safety (compare-and-set and tombstones, while leases are cleared).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from types import ModuleType
from typing import Any, Literal, NamedTuple

import msgspec

from features import policies
from features.checker import writers
from features.checker.schedule import FAULTS
from mlserve.cache import chain
from mlserve.cache.tiers import batches, l2_redis

_FOR_EVER_S = 1_000_000.0
_BETWEEN_STEPS_S = 0.03


class GuardNotFound(Exception):
    """What is to be taken away does not stand in the code as it did."""


class Ablation(NamedTuple):
    """`faults`: those that aim at it."""

    without: str
    found_by: Literal["run", "chance", "model"]
    remove: Callable[[], None]
    faults: tuple[str, ...] = tuple(FAULTS)


def remove(name: str) -> None:
    """In this process and what is forked from it. Raises GuardNotFound."""
    if name in ABLATIONS:
        ABLATIONS[name].remove()


# --- lines of scripts ---


class _EditedScripts:
    """Stands for `importlib.resources.files` in the modules that read scripts."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}

    def __call__(self, package: str) -> "_EditedScripts":
        return self

    def joinpath(self, folder: str, name: str) -> Any:
        return _Text(self.texts[name]) if name in self.texts else files("mlserve.cache").joinpath(folder, name)


class _Text(NamedTuple):
    data: bytes

    def read_bytes(self) -> bytes:
        return self.data


_edited = _EditedScripts()


def _edit(script: str, line: str, instead: str) -> None:
    text = files("mlserve.cache").joinpath("lua", script).read_bytes().decode()
    lines = text.split("\n")
    if lines.count(line) != 1:
        raise GuardNotFound(f"{script} has no line, or more than one, that reads {line!r}")
    _edited.texts[script] = "\n".join(instead if each == line else each for each in lines).encode()
    readers: Iterable[tuple[ModuleType, tuple[str, ...]]] = (
        (l2_redis, ("_text_of", "_digest_of")),
        (batches, ("_script",)),
    )
    for module, caches in readers:
        _replace(module, "files", _edited)
        for cached in caches:
            _known(module, cached).cache_clear()


# --- functions ---


def _known(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        raise GuardNotFound(f"{getattr(owner, '__name__', owner)} has no {name}")
    return getattr(owner, name)


def _replace(owner: Any, name: str, instead: Any) -> Any:
    """What was there."""
    known = _known(owner, name)
    setattr(owner, name, instead)
    return known


def _take_the_lease_after_the_commit() -> None:
    """A writer asks for its lease when its commit is over. It may be one of several commits that have ended since."""
    leases_of = _replace(writers, "write_leases", lambda keys: keys)
    through = _known(writers, "write_through")

    def late(entries: Mapping[Any, Any], keys: Any) -> None:
        time.sleep(_BETWEEN_STEPS_S)
        through(entries, leases_of(keys))

    _replace(writers, "write_through", late)


def _tear_batches_apart() -> None:
    """First the watermark, a little later what it promises."""

    def apart(self: batches.Batches, steps: Mapping[int, batches.Step], *, batch: str) -> Any:
        moved = apply(self, {at: msgspec.structs.replace(step, changes=()) for at, step in steps.items()}, batch=batch)
        changed = {
            at: batches.Step(answer.watermark, steps[at].following, steps[at].following, steps[at].changes)
            for at, answer in moved.items()
            if isinstance(answer, batches.Applied) and steps[at].changes
        }
        if not changed:
            return moved
        time.sleep(_BETWEEN_STEPS_S)
        return {**moved, **apply(self, changed, batch=f"{batch}b")}

    apply = _replace(batches.Batches, "apply", apart)


def _flush_nothing_at_a_gap() -> None:
    def forget(self: chain.Chain, partition: int) -> None:
        drop_all = self._memory.drop_all
        try:
            self._memory.drop_all = lambda is_concerned: None  # type: ignore[method-assign]
            known(self, partition)
        finally:
            self._memory.drop_all = drop_all  # type: ignore[method-assign]

    known = _replace(chain.Chain, "_forget", forget)


def _take_despite(*accepted: chain.Refusal) -> None:
    """Fills of L1 are not refused for these reasons."""

    def refusal(self: Any, *arguments: Any) -> Any:
        found = known(self, *arguments)
        return None if found in accepted else found

    known = _replace(chain.Chain, "_refusal", refusal)


def _believe_any_watermark() -> None:
    _replace(l2_redis.L2Tier, "_if_it_covers", lambda self, watermark, entity, heads: watermark)


def _trust_for_ever() -> None:
    """Copies of the right epoch count however long ago somebody vouched for them; silence is agreement."""

    def policy(*arguments: Any, **named: Any) -> Any:
        return msgspec.structs.replace(known(*arguments, **named), bound_s=_FOR_EVER_S)

    known = _replace(policies, "_policy", policy)
    _replace(chain.Chain, "note_silence", lambda self: None)


def _nothing() -> None:
    """It is the run that is another one (`run.py`)."""


ABLATIONS: dict[str, Ablation] = {
    "lease": Ablation(
        "a fill needs the lease that was taken before the read",
        "run",
        lambda: _edit("fill.lua", "  if redis.call('GET', KEYS[2]) ~= ARGV[1] then return -1 end", ""),
        ("evict", "reader_stop"),
    ),
    "lease_clearing": Ablation(
        "a batch takes away the leases of what changed",
        "chance",
        lambda: _edit("batch.lua", "  redis.call('DEL', lease)", ""),
        ("evict", "reader_stop"),
    ),
    "write_lease": Ablation("a writer takes its lease before its commit", "model", _take_the_lease_after_the_commit),
    "cas": Ablation(
        "a fill does not replace a newer record",
        "model",
        lambda: _edit("fill.lua", "  if valid and newer(held, record) then", "  if false then"),
    ),
    "tombstone": Ablation(
        "what a batch withdraws leaves its version behind",
        "model",
        lambda: _edit(
            "batch.lua",
            "      redis.call('HSET', hash, field, version .. 'T' .. moment)",
            "      redis.call('HDEL', hash, field)",
        ),
    ),
    "chain": Ablation(
        "a batch is refused unless it builds on the watermark that is there",
        "run",
        lambda: _edit(
            "batch.lua",
            "if held ~= ARGV[1] then return {0, held} end",
            "if ARGV[1] == '?' then return {0, held} end",
        ),
        ("old_file",),
    ),
    "atomic_batch": Ablation("invalidations and watermark are one step", "run", _tear_batches_apart, ("relay_kill",)),
    "gap_flush": Ablation("a gap empties the process's memory", "run", _flush_nothing_at_a_gap, ("flushall_unheard",)),
    "pending_drop": Ablation(
        "a fill of L1 that was under way at a gap is refused", "model", lambda: _take_despite(chain.Refusal.GAP)
    ),
    "ring": Ablation(
        "a fill of L1 that began before a message with a newer version is refused",
        "run",
        lambda: _take_despite(chain.Refusal.NAMED, chain.Refusal.FORGOTTEN),
        ("reader_stop", "flushall"),
    ),
    "watermark_check": Ablation(
        "what L2 says counts only if its watermark covers what was heard", "model", _believe_any_watermark
    ),
    "bound": Ablation(
        "a copy serves only if somebody vouched for it lately", "run", _trust_for_ever, ("relay_stop", "relay_kill")
    ),
    "ttl": Ablation(
        "freshness is proven at all: here copies serve by their age alone",
        "run",
        _nothing,
        ("relay_stop", "relay_kill"),
    ),
    "wrong_byte": Ablation("what is in the cache was read from the source: values are planted", "run", _nothing, ()),
    "old_record": Ablation("what is in the cache was put there once: old records are planted", "run", _nothing, ()),
}
PLANTS = {"wrong_byte": "plant_wrong_bytes", "old_record": "plant_old_records"}
