"""When which fault strikes: decided by the seed before anything runs, so that the same seed means the same run."""

import random
from collections.abc import Sequence

import msgspec

FAULTS: dict[str, str] = {
    "reader_kill": "kill -9 of a process that serves; another one takes its place",
    "reader_stop": "a process that serves is frozen for up to 2.5 s",
    "relay_kill": "kill -9 of a relay, or of both at once; it is started again up to 2 s later",
    "relay_stop": "a relay, or both, are frozen for up to 2.5 s",
    "primary_kill": "kill -9 of the cache's primary; the Sentinels promote its replica",
    "primary_stop": "the primary is frozen until the replica is promoted, and then goes on as if nothing had been",
    "lossy_failover": "the replica is cut off for up to 1.2 s and then promoted; what was told since is lost",
    "lossy_kill": "the same, but the primary dies while the relays are frozen, who go on from a history that is gone",
    "failover": "an operator has the Sentinels change the roles of two working servers",
    "link_cut": "nothing passes to the primary for up to 2 s, or its connections are closed",
    "slow_link": "each message to and from the cache takes up to 30 ms longer, for up to 2 s",
    "flushall": "FLUSHALL",
    "flushall_unheard": "FLUSHALL while the relays are frozen, up to 0.45 s; nobody tells what was written meanwhile",
    "old_file": "the cache is again what it was up to 0.7 s ago, as after a restart from an old file",
    "evict": "records of the cache go, a third every 0.1 s, for up to 3 s",
    "clock": "a process that serves is replaced by one whose clock is up to 50 ms off",
    "long_transaction": "a transaction that has written stays open for up to 4 s",
    "postgres_restart": "PostgreSQL shuts down at once (`pg_ctl -m immediate`) and recovers",
}
QUIET_START_S = 2.0
_SHORTEST_GAP_S, _LONGEST_GAP_S = 0.5, 2.5
_TYPICAL_FAULT_S = 1.5
"""About what one takes with its mending; there are always enough planned."""


class Planned(msgspec.Struct, frozen=True):
    """`after_s`: since the one before was mended. `share` (0 to 1) and `variant` say how; each fault reads its own."""

    fault: str
    after_s: float
    share: float
    variant: int


def plan(seed: int, *, seconds: float, faults: Sequence[str]) -> list[Planned]:
    """Every fault once, in an order by chance, before any comes again."""
    chance = random.Random(f"{seed} faults")
    planned: list[Planned] = []
    planned_s = QUIET_START_S
    while faults and planned_s < seconds:
        for fault in chance.sample(sorted(faults), len(faults)):
            after_s = chance.uniform(_SHORTEST_GAP_S, _LONGEST_GAP_S)
            planned.append(Planned(fault, after_s if planned else QUIET_START_S, chance.random(), chance.randrange(2)))
            planned_s += after_s + _TYPICAL_FAULT_S
    return planned
