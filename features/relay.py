"""Tells the cache what Postgres has committed, many times a second, and promises it no more than that.

Each tick asks the journal what was committed since the snapshot in the cache's watermarks, puts tombstones over the
copies of that, and moves the watermarks on to the snapshot of that very question: both in one step for each partition,
and only from the watermark that it built on (`lua/batch.lua`). So nothing depends on who does it. Relays need no
leader; two that work at the same time lose races to each other and no more. One that is killed at any moment leaves a
watermark that is true.

Where a watermark cannot be continued, nobody can tell which copies are out of date, and the partition gets a new
epoch: all its copies are void at once. That is so if

* it is gone or unreadable (FLUSHALL, a restart, a value of somebody else's, another key of the seal),
* Postgres is not the one that it speaks of (a promoted standby, a restored dump or backup, a copy, another server),
* the journal was trimmed past it, or holds more than is worth telling one by one.

The new epoch is durable in Postgres before the cache hears of it, so no number ever means two things. One that is
durable and not in the cache yet, because somebody raised it and did not come to tell it, is as good as another one:
whatever is wrong with the watermark, it is taken on to that epoch and no further one is raised. So one event costs each
partition one epoch, also where relays race, die in between, or do not reach a node.

Where Postgres is another one, all that it keeps of the cache in numbers of transactions is made its own first
(`Journal.begin_anew`). While the triggers that write the journal are not all there (in the middle of a restore, or
switched off by hand) nothing is told and nothing promised, and the first relay that finds them again begins anew.
"""

import os
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
import psycopg
import structlog

from features.guards import TABLE
from features.journal import EPOCHS_SKIPPED, Incarnation, Journal, Kept, KeptPartition, Span
from mlserve.cache.clock import Clock
from mlserve.cache.tiers.batches import Answer, Applied, Batches, EntityChange, Raced, Step, Unanswered, by_partition
from mlserve.cache.watermark import Watermark
from mlserve.observability import metrics

TICK_S = 0.05
"""A twentieth of the default bound on staleness, and twenty statements a second for Postgres."""
REMEMBER_EVERY_S = 10.0
"""Costs a commit; the journal is kept for a day beyond."""
MARKER = "!"
"""Begins what a relay puts in the place of a watermark that is none, before it gives the partition a new epoch."""
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_log = structlog.get_logger(__name__)


class Lost(StrEnum):
    """Why a partition's copies are void."""

    NO_WATERMARK = "no_watermark"
    NEW_PARTITION = "new_partition"
    OTHER_POSTGRES = "other_postgres"
    JOURNAL_TRIMMED = "journal_trimmed"
    TOO_MANY_CHANGES = "too_many_changes"


class Unjournaled(Exception):
    """The triggers that write the journal are not all there: what changes now is seen by nobody."""

    def __init__(self) -> None:
        super().__init__(
            f"the triggers of {TABLE} that write the journal are not all there; `manage.py doctor` names them"
        )


def judge(held: Watermark | None, kept: KeptPartition | None, present: Incarnation, span: Span | None) -> Lost | None:
    """Whether `span`, which begins at the snapshot of `held`, continues it. None: it does."""
    if kept is None:
        return Lost.NEW_PARTITION
    if not kept.written_here or kept.incarnation != present:
        return Lost.OTHER_POSTGRES
    if held is None or span is None:
        return Lost.NO_WATERMARK
    if held.epoch > kept.epoch or held.next_xid > int(span.snapshot.split(":")[1]):
        return Lost.OTHER_POSTGRES  # it has seen what this database has not
    if held.oldest_running <= kept.trimmed:
        return Lost.JOURNAL_TRIMMED
    if span.changes is None:
        return Lost.TOO_MANY_CHANGES
    return None


class Tally(msgspec.Struct):
    """What a relay has done. `steps` of partitions, those without a change included; `races` lost."""

    ticks: int = 0
    steps: int = 0
    keys: int = 0
    tombstones: int = 0
    races: int = 0
    epochs_raised: int = 0


class Stop(Protocol):
    """What is needed of a threading.Event."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Relay:
    """Not thread-safe. `partitions`: how many the cache has.

    `before_anew` is called when Postgres turned out to be another one, before that is made good in it: what else the
    cache holds of the one before has to go. If it raises, the next tick begins with it again.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        batches: Batches,
        partitions: int,
        clock: Clock,
        before_anew: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(3)}"
        self.tally = Tally()
        self._journal = journal
        self._batches = batches
        self._partitions = partitions
        self._clock = clock
        self._before_anew = before_anew
        self._held: dict[int, bytes] = {}
        """The watermark of each partition as it was last seen; without those that must be asked for."""
        self._promised: dict[int, Watermark] = {}
        """The last one of each partition that could be read."""
        self._remembered_at = float("-inf")
        self._away = _Away(clock)

    @property
    def lag_s(self) -> float | None:
        """Age of the oldest promise, by this host's clock. None before every partition has one."""
        if len(self._promised) < self._partitions:
            return None
        return self._clock.now() - min(mark.safe_time for mark in self._promised.values())

    def tick(self) -> set[int]:
        """Takes each partition to this moment; returns those that were.

        Others have lost a race, or do not answer and are left alone for a while. Raises psycopg's errors, and
        Unjournaled.
        """
        self.tally.ticks += 1
        asked = self._away.answering(range(self._partitions))
        self._see(self._batches.read([partition for partition in asked if partition not in self._held]))
        seen = self._claim([partition for partition in asked if partition in self._held])
        steps = self._steps(seen) if seen else {}
        answers = self._batches.apply(steps, batch=f"{self.name}.{self.tally.ticks}")
        self._see(answers)
        applied = {partition for partition, answer in answers.items() if isinstance(answer, Applied)}
        self._remember(applied)
        self._publish(answers)
        return applied

    def run(self, stopped: Stop, *, tick_s: float = TICK_S) -> None:
        """Ticks until `stopped`. Never raises: it waits, for longer and longer up to a second, and says for what."""
        waiting_for: str | None = None
        pause_s = _FIRST_PAUSE_S
        while not stopped.is_set():
            began = self._clock.monotonic()
            now_waiting: str | None = None
            try:
                self.tick()
            except psycopg.Error as error:
                now_waiting = f"Postgres: {_first_line(error)}"
            except Exception as error:  # whatever it was, the next tick may go well
                now_waiting = f"{type(error).__name__}: {_first_line(error)}"
                self._held.clear()
            else:
                pause_s = _FIRST_PAUSE_S
            if now_waiting is None:
                if waiting_for is not None:
                    _log.info("relay_goes_on", relay=self.name)
                stopped.wait(max(0.0, began + tick_s - self._clock.monotonic()))
            else:
                if waiting_for is None or waiting_for.partition(":")[0] != now_waiting.partition(":")[0]:
                    _log.warning("relay_waits", relay=self.name, waits_for=now_waiting)
                self._publish({})
                stopped.wait(pause_s * random.uniform(0.8, 1.2))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            waiting_for = now_waiting
        self._journal.close()

    # --- what is to be done ---

    def _claim(self, partitions: Sequence[int]) -> list[int]:
        """The partitions that can be taken on. One without a watermark gets a marker of this relay's first.

        A step must build on what is there once only. Nothing is not: a relay that was held up between its questions to
        Postgres and its step would begin its epoch a second time, after another loss, and leases of its first time
        would fill what its second watermark vouches for.
        """
        lost = {at: held for at in partitions if self._batches.parse(at, held := self._held[at]) is None}
        answers = self._batches.claim(lost, f"{MARKER}{self.name}.{self.tally.ticks}".encode())
        self._see(answers)
        return [at for at in partitions if at not in lost or isinstance(answers[at], Applied)]

    def _steps(self, partitions: Sequence[int]) -> dict[int, Step]:
        held = {partition: self._batches.parse(partition, self._held[partition]) for partition in partitions}
        spans = {mark.snapshot: None for mark in held.values() if mark is not None}
        read = {snapshot: self._journal.since(snapshot) for snapshot in spans}
        kept = self._journal.kept()
        if not kept.journaled:
            self._journal.distrust()
            raise Unjournaled
        steps: dict[int, Step] = {}
        lost: dict[int, Lost] = {}
        told: dict[str, dict[int, list[EntityChange]]] = {}
        for partition, mark in held.items():
            span = read[mark.snapshot] if mark is not None else None
            why = judge(mark, kept.partitions.get(partition), kept.incarnation, span)
            if why is not None:
                lost[partition] = why
                continue
            assert mark is not None and span is not None and span.changes is not None
            if mark.snapshot not in told:
                told[mark.snapshot] = by_partition(span.changes, self._partitions)
            following = self._watermark(kept.partitions[partition].epoch, span)
            changes = told[mark.snapshot].get(partition, [])
            steps[partition] = Step(self._held[partition], mark, following, changes)
        return steps | self._new_epochs(lost, held, kept)

    def _new_epochs(
        self, lost: Mapping[int, Lost], held: Mapping[int, Watermark | None], kept: Kept
    ) -> dict[int, Step]:
        if not lost:
            return {}
        # Where the watermark is older than the kept epoch, that one was raised and nobody has told it.
        wanted = {
            partition: mark.epoch if (mark := held[partition]) else 0
            for partition in lost
            if not _has_untold_epoch(held[partition], kept, partition)
        }
        if wanted:
            self._raise_epochs(wanted, {partition: lost[partition] for partition in wanted}, held, kept)
        # First the snapshot, then the epochs: one that was raised by a change in the snapshot must not be missed.
        now = self._journal.now()
        after = self._journal.kept().partitions
        return {
            partition: Step(self._held[partition], held[partition], self._watermark(after[partition].epoch, now))
            for partition in lost
        }

    def _raise_epochs(
        self,
        wanted: Mapping[int, int],
        lost: Mapping[int, Lost],
        held: Mapping[int, Watermark | None],
        kept: Kept,
    ) -> None:
        """Durable on return. `wanted`: the numbers that the new epochs must exceed."""
        unknown_to_postgres = not kept.partitions and any(mark is not None for mark in held.values())
        if Lost.OTHER_POSTGRES in lost.values() or unknown_to_postgres:
            self._before_anew()
            # Where there is no watermark nobody knows which epochs the other server gave after what is kept.
            jump = {at: kept.partitions[at].epoch + EPOCHS_SKIPPED for at in wanted if at in kept.partitions}
            if not self._journal.begin_anew({at: above or jump.get(at, 0) for at, above in wanted.items()}, kept):
                return  # another relay was quicker
        else:
            self._journal.raise_epochs(wanted, kept)
        self.tally.epochs_raised += len(wanted)
        for why in sorted(set(lost.values())):
            of_reason = sorted(partition for partition in lost if lost[partition] is why)
            say = _log.info if why is Lost.NEW_PARTITION else _log.warning
            say("epoch_raised", relay=self.name, why=str(why), partitions=of_reason)

    def _watermark(self, epoch: int, span: Span) -> Watermark:
        return Watermark(epoch, span.snapshot, span.safe_time, self.name)

    # --- what came of it ---

    def _see(self, answers: Mapping[int, Answer]) -> None:
        for partition, answer in answers.items():
            if isinstance(answer, Unanswered):
                self._held.pop(partition, None)
                self._away.failed(partition, answer.why)
                continue
            self._away.answered(partition)
            self._held[partition] = answer.watermark
            mark = self._batches.parse(partition, answer.watermark)
            if mark is not None:
                self._promised[partition] = mark

    def _remember(self, applied: set[int]) -> None:
        if applied and self._clock.monotonic() - self._remembered_at >= REMEMBER_EVERY_S:
            self._journal.remember({partition: self._promised[partition] for partition in applied})
            self._remembered_at = self._clock.monotonic()

    def _publish(self, answers: Mapping[int, Answer]) -> None:
        lag_s = self.lag_s
        if lag_s is not None:
            metrics.RELAY_LAG.set(lag_s)
        for partition, answer in answers.items():
            if isinstance(answer, Applied):
                self.tally.steps += 1
                self.tally.keys += answer.keys
                self.tally.tombstones += answer.tombstones
                metrics.RELAY_BATCHES.inc()
                metrics.RELAY_KEYS.inc(answer.keys)
                metrics.CACHE_EPOCH.labels(str(partition)).set(self._promised[partition].epoch)
            elif isinstance(answer, Raced):
                self.tally.races += 1
                metrics.RELAY_CHAIN_RACES.inc()


def _has_untold_epoch(held: Watermark | None, kept: Kept, partition: int) -> bool:
    return (
        held is not None
        and partition in kept.partitions
        and kept.is_of_here(partition)
        and kept.partitions[partition].epoch > held.epoch
    )


class _Away:
    """Partitions whose node does not answer: asked again after growing pauses, so that the others need not wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._again_at: dict[int, float] = {}
        self._pause_s: dict[int, float] = {}

    def answering(self, partitions: Sequence[int]) -> list[int]:
        now = self._clock.monotonic()
        return [partition for partition in partitions if self._again_at.get(partition, now) <= now]

    def failed(self, partition: int, why: str) -> None:
        if partition not in self._pause_s:
            _log.warning("relay_waits", waits_for=f"cache: {why}", partition=partition)
        pause_s = self._pause_s.get(partition, _FIRST_PAUSE_S)
        self._again_at[partition] = self._clock.monotonic() + pause_s * random.uniform(0.8, 1.2)
        self._pause_s[partition] = min(2 * pause_s, _LONGEST_PAUSE_S)

    def answered(self, partition: int) -> None:
        self._again_at.pop(partition, None)
        if self._pause_s.pop(partition, None) is not None:
            _log.info("relay_goes_on", partition=partition)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
