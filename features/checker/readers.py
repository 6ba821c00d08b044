"""A process that serves: several threads over one engine, as in a web process, each of them one session."""

import random
import threading
import time

from django.db import connections

from features.checker.history import ReadLog
from features.checker.keyspace import Keyspace
from features.checker.phase import Phase, PhaseByte
from features.checker.run_file import RunFile
from features.checker.sessions import Session, watch_for_unproven
from features.policies import policies_in_force
from mlserve.cache.clock import SystemClock
from mlserve.cache.wiring import engine

STRONG_SHARE = 0.02
SESSIONS_PER_PROCESS = 100
LATE_FILL_SHARE = 0.01
"""Of the reads of the source, how many are held up before what they read is put into the cache, as if the processor had
been taken away there. Without it the order of events that leases are for would be rare."""
_LONGEST_HOLD_S = 2.5
"""Shorter than a lease: a fill that comes later is refused for that alone."""
_WAIT_FOR_END_S = 0.05


def read_for_as_long_as_it_runs(
    run: RunFile, *, process: int, threads: int, pause_s: float, clock_offset_ms: float = 0.0
) -> None:
    """Until the final phase; then every key once more from every tier.

    `pause_s`: mean pause of a thread between two requests. `clock_offset_ms`: by how much this host's clock is to be
    wrong in this process. That covers what a reader concludes from its clock (ages, T against now); it does not cover
    the timers of kernel and database, nor a clock that jumps while the process runs.
    """
    if clock_offset_ms:
        _shift_clock(clock_offset_ms / 1000)
    log = ReadLog(run.logs / f"reader-{process}.reads", process, round(clock_offset_ms * 1000))
    keyspace, phase = Keyspace(run.keys), PhaseByte(run.phase_file)
    engine()
    watch_for_unproven()
    _hold_up_fills(random.Random(f"{run.seed} holds {process}"))
    policies_in_force()
    sessions = [
        Session(process * SESSIONS_PER_PROCESS + place, keyspace, log.buffer(), with_token=place % 2 == 1)
        for place in range(threads)
    ]
    errors: list[BaseException] = []
    workers = [
        threading.Thread(target=_work, args=(session, keyspace, phase, run.seed, pause_s, errors), daemon=True)
        for session in sessions
    ]
    for worker in workers:
        worker.start()
    while phase.phase is not Phase.FINAL:
        if errors:
            raise errors[0]
        time.sleep(_WAIT_FOR_END_S)
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    _read_everything(sessions[0], keyspace)


def _work(
    session: Session, keyspace: Keyspace, phase: PhaseByte, seed: int, pause_s: float, errors: list[BaseException]
) -> None:
    chance = random.Random(f"{seed} reader {session.number}")
    try:
        while phase.phase is not Phase.FINAL:
            merchant = 2 * chance.randrange(len(keyspace.merchants))
            keys = keyspace.keys[merchant : merchant + 2]
            if keyspace.customers:
                keys.append(keyspace.keys[2 * len(keyspace.merchants) + chance.randrange(len(keyspace.customers))])
            if chance.random() < 0.02:
                keys.append(chance.choice(keyspace.held))
            session.read(keys, strong=chance.random() < STRONG_SHARE)
            time.sleep(pause_s * chance.uniform(0.2, 1.8))
    except BaseException as error:
        errors.append(error)
    finally:
        session.flush()
        connections.close_all()


def _read_everything(session: Session, keyspace: Keyspace) -> None:
    """As it is; then from L2, with this process's memory gone; then from the source."""
    store = engine().l1.store
    keys = keyspace.keys
    for strong, forget in ((False, False), (False, True), (True, False)):
        for start in range(0, len(keys), 20):
            if forget:
                store.clear()
            session.read(keys[start : start + 20], strong=strong, final=True)
    session.flush()


def _shift_clock(offset_s: float) -> None:
    """Before the engine is built, which keeps the clock's functions."""
    right = SystemClock.now
    SystemClock.now = staticmethod(lambda: right() + offset_s)


def _hold_up_fills(chance: random.Random) -> None:
    fill = engine().filler._write

    def write_late(fills: list[object]) -> None:
        if chance.random() < LATE_FILL_SHARE * len(fills):
            time.sleep(chance.uniform(0.05, _LONGEST_HOLD_S))
        fill(fills)  # type: ignore[arg-type]

    engine().filler._write = write_late  # type: ignore[method-assign, assignment]
