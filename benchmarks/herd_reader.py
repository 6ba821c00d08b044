"""`python -m benchmarks.herd_reader THREADS`: one process of readers who want one key. A child of `herd.py`."""

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import django
import msgspec

from benchmarks.child import say, told

GROUP = "merchant_risk"
FRESH_FOR_S, GRACE_S = 60.0, 600.0


class Stampede(msgspec.Struct):
    """What to do: everybody reads `merchant`. `protected`: by the engine's loading; else each miss is a load.

    `leave_copy_of`: put an expired copy into L2 first, that many seconds old.
    """

    merchant: str
    protected: bool
    leave_copy_of: float | None = None


class Outcome(msgspec.Struct):
    """`loads`: reads of Postgres. `worst_s`: the longest that a reader waited."""

    loads: int
    answered: int
    stale: int
    worst_s: float


class Herd:
    """Of one process, with the engine that serves."""

    def __init__(self, threads: int) -> None:
        from features import source
        from mlserve.cache.cascade import Cascade
        from mlserve.cache.loading import DirectLoading
        from mlserve.cache.outcome import Tier
        from mlserve.cache.policy import Policy
        from mlserve.cache.wiring import engine

        self._engine = engine()
        self._threads = threads
        self._policies = {
            GROUP: Policy(namespace=GROUP, schema=1, fresh_for_s=FRESH_FOR_S, grace_s=GRACE_S, negative_ttl_s=5)
        }
        self._unprotected = Cascade(
            l1=self._engine.l1,
            l2=self._engine.l2,
            loading=DirectLoading(filler=self._engine.filler, stats=self._engine.recorder, source_tier=Tier.L3),
            stats=self._engine.recorder,
            clock=self._engine.clock,
        )
        self._load = source.loader(self._engine.l3_breaker, self._engine.l3_limiter)
        self._loads = 0
        self._lock = threading.Lock()

    def leave_copy(self, stampede: Stampede) -> None:
        from mlserve.cache.entry import Entry
        from mlserve.cache.keys import Key

        assert stampede.leave_copy_of is not None
        then = self._engine.clock.now() - stampede.leave_copy_of
        self._engine.l2.put_many(
            {Key("merchant", stampede.merchant, GROUP): Entry(1, then, then, (0.0,) * 6)}, self._policies
        )

    def run(self, stampede: Stampede) -> Outcome:
        from mlserve.cache.breaker import State
        from mlserve.cache.keys import Key
        from mlserve.cache.tiers.request import RequestTier

        key = Key("merchant", stampede.merchant, GROUP)
        cascade = self._engine.features if stampede.protected else self._unprotected
        barrier = threading.Barrier(self._threads + 1)
        outcome = Outcome(0, 0, 0, 0.0)
        self._loads = 0
        clock = self._engine.clock

        def read() -> None:
            barrier.wait()
            started = clock.monotonic()
            reading = cascade.read_many(
                [key],
                policies=self._policies,
                loader=self._counted_load,
                request=RequestTier(),
                budget=self._engine.budget(),
            )
            elapsed_s = clock.monotonic() - started
            with self._lock:
                outcome.answered += reading.outcomes[key].values is not None
                outcome.stale += reading.outcomes[key].stale
                outcome.worst_s = max(outcome.worst_s, elapsed_s)

        readers = [threading.Thread(target=read) for _ in range(self._threads)]
        for reader in readers:
            reader.start()
        # The other side's herd may have left them open: with all cores busy, even Redis seems to be away.
        breakers = (self._engine.l2_breaker, self._engine.l3_breaker)
        while any(breaker.state is not State.CLOSED for breaker in breakers):
            clock.sleep(0.02)
        say("armed")
        sys.stdin.readline()  # go
        barrier.wait()
        for reader in readers:
            reader.join()
        self._engine.filler.flush()
        outcome.loads = self._loads
        return outcome

    def _counted_load(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        entries = self._load(keys)
        with self._lock:  # not if the cap on reads of Postgres refused it
            self._loads += 1
        return entries


def main() -> None:
    django.setup()
    herd = Herd(int(sys.argv[1]))
    say("ready")
    for message in told():
        stampede = msgspec.convert(message, Stampede)
        if stampede.leave_copy_of is not None:
            herd.leave_copy(stampede)
        say(herd.run(stampede))


if __name__ == "__main__":
    main()
