"""The guards of the protocol, each with how to do without it: other lines in the scripts, or another course of events.

Lines are replaced as they stand in the engine's scripts; one that is not there any more fails loudly, since a guard
that cannot be taken out is one whose worth nobody shows.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tests.model.redis_node import text_of


class Edit(NamedTuple):
    script: str
    line: str
    instead: str


class Guard(NamedTuple):
    """`does` in a few words; a guard without edits is a course of events that the models know by its name."""

    does: str
    edits: tuple[Edit, ...] = ()


GUARDS: Mapping[str, Guard] = {
    "lease": Guard(
        "a fill is refused unless the lease that was taken before the read is still there",
        (Edit("fill.lua", "  if redis.call('GET', KEYS[2]) ~= ARGV[1] then return -1 end", ""),),
    ),
    "lease clearing": Guard(
        "a batch takes away the leases of what changed",
        (Edit("batch.lua", "  redis.call('DEL', lease)", ""),),
    ),
    "write lease before commit": Guard("a writer that fills has taken the lease while it held the row"),
    "compare and set": Guard(
        "a fill does not replace a newer record",
        (Edit("fill.lua", "  if valid and newer(held, record) then", "  if false then"),),
    ),
    "tombstone": Guard(
        "what a batch withdraws leaves its version behind",
        (
            Edit(
                "batch.lua",
                "      redis.call('HSET', hash, field, version .. 'T' .. moment)",
                "      redis.call('HDEL', hash, field)",
            ),
        ),
    ),
    "chain": Guard(
        "a batch is refused unless the watermark is the one that it builds on",
        (
            Edit(
                "batch.lua",
                "if held ~= ARGV[1] then return {0, held} end",
                "if ARGV[1] == '?' then return {0, held} end",
            ),
        ),
    ),
    "atomic batch": Guard(
        "invalidations and watermark are one step",
        (Edit("batch.lua", "redis.call('SET', KEYS[1], ARGV[2])", ""),),
    ),
    "primary reads": Guard("what fills the cache is read from the primary"),
    "watermark first": Guard("a reader asks for the watermark before the records"),
    "one node": Guard("the watermark and the records of a read come from the same node"),
    "gap flush": Guard("a message that does not continue the last one empties the process's memory"),
    "pending drop": Guard("a fill that was under way at a gap is refused"),
    "ring": Guard("a fill that began before a message with a newer version of its key is refused"),
    "watermark check": Guard("what L2 says counts only if its watermark covers what the process has heard"),
}


def scripts_without(*removed: str) -> dict[str, bytes]:
    """The texts of the scripts that these guards are taken out of.

    Of an atomic batch the half that invalidates: the models tell the other half afterwards, with the script as it is.
    """
    changed: dict[str, bytes] = {}
    for name in removed:
        for edit in GUARDS[name].edits:
            text = changed.get(edit.script, text_of(edit.script)).decode()
            if text.split("\n").count(edit.line) != 1:
                raise LookupError(f"{edit.script} has no line, or more than one, that reads {edit.line!r}")
            changed[edit.script] = "\n".join(
                edit.instead if line == edit.line else line for line in text.split("\n")
            ).encode()
    return changed
