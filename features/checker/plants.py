"""Faults of nobody's code, put into L2 to see whether the checker finds them."""

import time
from contextlib import suppress

import redis

from features.checker.keyspace import AROUND, Keyspace
from features.checker.phase import Phase, PhaseByte
from features.checker.run_file import RunFile
from features.policies import policies_in_force
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.wiring import engine, l2_client

_EVERY_S = 0.2
_KEPT_S = 1.5
"""Longer than the bound: what comes back then is too old to be served."""


def plant_wrong_bytes(run: RunFile) -> None:
    """Fills newest versions with other values, by the lease and the script that readers fill with."""
    phase, cache, policies = PhaseByte(run.phase_file), engine(), policies_in_force().policies
    keys = _quiet_keys(run)
    while phase.phase is Phase.RUNNING:
        for key, entry in cache.l2.get_many(keys, policies).items():
            if isinstance(entry, Entry) and entry.values is not None:
                wrong = Entry(entry.version, entry.as_of, entry.written_at, (666.0,) * len(entry.values))
                leases = cache.l2.lease_for_write([key.entity], timeout_s=_EVERY_S)
                cache.l2.fill_many({key: wrong}, policies, leases)
        time.sleep(_EVERY_S)


def plant_old_records(run: RunFile) -> None:
    """Puts records back that were once true, sealed and all."""
    phase, client = PhaseByte(run.phase_file), l2_client()
    names = [names_of(*key.entity, 1).record for key in _quiet_keys(run)]
    while phase.phase is Phase.RUNNING:
        with suppress(redis.RedisError):  # a fault is under way
            kept = {name: client.hget(name, AROUND) for name in names}
            time.sleep(_KEPT_S)
            for name, record in kept.items():
                if record:
                    client.hset(name, AROUND, record)
        time.sleep(_EVERY_S)


def _quiet_keys(run: RunFile) -> list[Key]:
    """Written seldom enough that a plant is found before the next write."""
    return [key for key in Keyspace(run.keys).keys if key.group == AROUND][-6:]
