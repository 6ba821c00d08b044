"""One run of the checker: a stand, load, faults, quiet, a last look at everything, and the verdict."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psycopg

from features.checker.cache_servers import NotMended
from features.checker.children import ChildFailed
from features.checker.faults import Nemesis
from features.checker.history import Volume, now_ns, read_files, reads_of, volume, write_events
from features.checker.keyspace import Keyspace
from features.checker.phase import Phase, PhaseByte
from features.checker.run_file import RunFile
from features.checker.schedule import FAULTS, plan
from features.checker.stand import Load, Stand, directory
from features.checker.verdict import Process, Verdict, judge
from mlserve.settings import env
from mlserve.stopping import Stop

QUIET_S = 1.0
"""Longer than the bound, after the writers have stopped, before everything must be up to date."""
_END_S = 30.0
_FINAL_S = 60.0
_PROGRESS_S = 1.0
_LOOK_S = 5.0
"""From one look for violations to the next, where the first one ends the run: judging takes up to a second."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` of load, or longer until each of the `faults` (names out of `FAULTS`) has struck once.

    `ablation`: a guard to do without, or ''. `until_found`: end at the first violation that is seen. `keep_logs`: where
    they go; without it those of a failed run are kept.
    """

    seconds: float
    seed: int
    faults: Sequence[str] = tuple(FAULTS)
    ablation: str = ""
    keys: int = 40
    bound_s: float = 1.0
    load: Load = Load()
    keep_logs: Path | None = None
    until_found: bool = False


class Report(msgspec.Struct):
    """`failures`: what kept the run from being one; its figures then prove nothing. `logs`: where they were kept."""

    seed: int
    seconds: float
    bound_s: float
    ablation: str
    verdict: Verdict
    faults: dict[str, dict[str, int]]
    failovers: int
    writer_crashes: int
    failures: list[str]
    reads_per_second: float
    writes_per_second: float
    logs: str = ""

    @property
    def clean(self) -> bool:
        return not self.verdict.violations and not self.failures


Tell = Callable[[str, Volume], None]
"""Of progress: what goes on, and how much there is."""


def check(settings: Settings, *, tell: Tell, stop: Stop) -> Report:
    """Everything that was started is gone when it returns or raises, StopRequested among others."""
    failed = False

    def keep() -> Path | None:
        wanted = failed and not (settings.until_found and settings.ablation)
        if settings.keep_logs is not None or not wanted:
            return settings.keep_logs
        return env.VAR_DIR / "checker" / f"seed-{settings.seed}-{settings.ablation or 'whole'}"

    with directory(keep=keep) as place:
        run = RunFile(
            directory=str(place),
            began_ns=now_ns(),
            seed=settings.seed,
            keys=settings.keys,
            bound_s=settings.bound_s,
            ablation=settings.ablation,
            proven=settings.ablation != "ttl",
        )
        try:
            report = _Run(settings, run, place, tell, stop).report()
        except Exception:
            failed = True
            raise
        failed = not report.clean
        (place / "verdict.json").write_bytes(msgspec.json.encode(report))
        kept = keep()
        report.logs = str(kept) if kept is not None else ""
    return report


class _Run:
    def __init__(self, settings: Settings, run: RunFile, place: Path, tell: Tell, stop: Stop) -> None:
        self._settings = settings
        self._run = run
        self._place = place
        self._tell = tell
        self._stop = stop
        self._doing = "starting servers"
        self._told_at = 0.0
        self._stand = Stand(place, run=run, load=settings.load, on_tick=self._progress)
        self._nemesis = Nemesis(self._stand)
        self._journal: dict[int, list[int]] = {}
        self._failures: list[str] = []
        self._ran_s = 0.0
        self._looked_at = time.monotonic()

    def report(self) -> Report:
        try:
            self._play()
        except (NotMended, ChildFailed) as error:
            self._failures.append(f"{type(error).__name__}: {error}")
            with suppress(psycopg.Error):  # it may be what has failed
                self._journal = self._journal or self._committed()
        finally:
            self._stop.run_undisturbed(self._stand.stop)
        self._say("judging")
        verdict = self._judge()
        failures = [*self._failures, *self._stand.failures]
        ended_early = self._settings.until_found and verdict.violations
        if not failures and not verdict.final_reads and not ended_early:
            failures.append("nobody came to the last look")
        written, ran_s = verdict.writes, max(self._ran_s, 0.001)
        return Report(
            seed=self._settings.seed,
            seconds=round(ran_s, 3),
            bound_s=self._settings.bound_s,
            ablation=self._settings.ablation,
            verdict=verdict,
            faults={
                fault: {"planned": count, "fired": self._nemesis.fired[fault]}
                for fault, count in sorted(self._nemesis.planned.items())
            },
            failovers=self._nemesis.failovers,
            writer_crashes=self._stand.crashes,
            failures=failures,
            reads_per_second=round(verdict.reads / ran_s, 1),
            writes_per_second=round(written / ran_s, 1),
        )

    def _play(self) -> None:
        phase = PhaseByte(self._run.phase_file)
        self._stand.start()
        self._nemesis.mend()
        began = time.monotonic()
        found = self._strike_until(began + self._settings.seconds)
        self._ran_s = time.monotonic() - began
        if found:
            self._journal = self._committed()
            return
        self._say("writers stop")
        phase.phase = Phase.QUIET
        if not self._stand.wait(lambda: not self._stand.writers_running, within_s=_END_S):
            self._failures.append("a writer did not stop")
        self._nemesis.mend()
        self._stand.pause(self._settings.bound_s + QUIET_S)
        self._say("last look")
        phase.phase = Phase.FINAL
        readers = set(self._stand.readers.values())
        if not self._stand.wait(lambda: readers <= self._stand.ended.keys(), within_s=_FINAL_S):
            self._failures.append("a reader did not come to an end")
        self._journal = self._committed()

    def _strike_until(self, end: float) -> bool:
        """Or longer, until each fault has struck once: on a machine that is busy they take longer.

        Whether it ended before, at a violation.
        """
        settings = self._settings
        planned = plan(settings.seed, seconds=settings.seconds, faults=settings.faults)
        (self._place / "schedule.json").write_bytes(msgspec.json.encode(planned))
        for number, each in enumerate(planned):
            first_round = number < len(settings.faults)
            self._say("undisturbed")
            self._stand.pause(each.after_s if first_round else min(each.after_s, max(0.0, end - time.monotonic())))
            if self._found():
                return True
            if time.monotonic() >= end and not first_round:
                return False
            self._say(each.fault)
            self._nemesis.strike(each)
        while (left_s := end - time.monotonic()) > 0:
            self._say("undisturbed")
            self._stand.pause(min(left_s, _LOOK_S))
            if self._found():
                return True
        return False

    def _found(self) -> bool:
        """Judges what is in the files so far, by a journal that is read after them: it has all that was read."""
        now = time.monotonic()
        if not self._settings.until_found or now - self._looked_at < _LOOK_S:
            return False
        self._looked_at = now
        self._say("judging")
        logs = self._run.logs
        processes = [
            Process(file.process, file.clock_offset_ns / 1e9, list(reads_of(file))) for file in read_files(logs)
        ]
        try:
            journal = self._committed()
        except psycopg.Error:
            return False
        writes = write_events(logs)
        found = judge(journal=journal, writes=writes, processes=processes, bound_s=self._settings.bound_s)
        return bool(found.violations)

    def _committed(self) -> dict[int, list[int]]:
        """By the journal, of which every transaction that committed has written its lines."""
        place = Keyspace(self._run.keys).place
        names = {(key.group, key.id): number for key, number in place.items()}
        found: dict[int, list[int]] = {}
        url = self._stand.postgres.running().database_url
        if url is None:
            return found
        with psycopg.connect(url) as connection:
            for group, entity_id, version in connection.execute(
                'SELECT "group", entity_id, version FROM features_journal_row'
            ):
                if (group, entity_id) in names:
                    found.setdefault(names[group, entity_id], []).append(version)
        return found

    def _judge(self) -> Verdict:
        logs = self._run.logs
        processes = (Process(file.process, file.clock_offset_ns / 1e9, reads_of(file)) for file in read_files(logs))
        return judge(
            journal=self._journal, writes=write_events(logs), processes=processes, bound_s=self._settings.bound_s
        )

    def _say(self, doing: str) -> None:
        self._doing = doing
        self._told_at = 0.0
        self._progress()

    def _progress(self) -> None:
        self._stop.check()
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_S:
            self._told_at = now
            self._tell(self._doing, volume(self._run.logs) if self._run.logs.exists() else Volume(0, 0))
