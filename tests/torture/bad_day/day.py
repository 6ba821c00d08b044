"""The whole day: a testbed, traffic, one fault after the other, a time without traffic, and the verdict."""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final

import psycopg

from tests.torture.bad_day import evidence, postgres_faults, process_faults, valkey_faults
from tests.torture.bad_day.conduct import CALM, Conduct, Phase
from tests.torture.bad_day.fault import Day, Fault
from tests.torture.bad_day.judge import Facts, ProcessSample, judge
from tests.torture.bad_day.ledger import Ledger
from tests.torture.bad_day.machine import CROWDED, Machine
from tests.torture.bad_day.plan import CALM_S, Step, plan_day
from tests.torture.bad_day.requests import Requests
from tests.torture.bad_day.testbed import Testbed, testbed
from tests.torture.bad_day.traffic import Traffic
from tests.torture.bad_day.violation import Violation
from tests.torture.bad_day.web_client import NoAnswer, NoConnection

PER_SECOND: Final = 25.0
WARM_UP_S: Final = 8.0
SETTLE_S: Final = 15.0
"""Without traffic, before anything is looked at that must stand still."""
STILL_S: Final = 12.0
"""For which files and epochs must stand still."""
STOP_S: Final = 20.0
MAX_STRETCH: Final = 1.5
"""By which a day may be longer than was asked for."""
EDIT_EVERY_S: Final = 3.0
CROWD_S: Final = 12.0
"""For how long others who took the processors are held to blame: longer than a client's time-out."""
_HARMLESS: Final = frozenset({"stale_refreshing", "window_incomplete", "stale"})
"""Reasons for which a score may be flagged on a good day."""
_POLICIES: Final = ("customer_activity", "customer_profile", "merchant_profile", "merchant_risk", "prediction")


@dataclass(kw_only=True)
class Report:
    """How a day was. `phases` in their order."""

    seed: int
    violations: list[Violation] = field(default_factory=list)
    notes: list[Violation] = field(default_factory=list)
    """What broke a rule about times while others had the processors."""
    phases: list[Phase] = field(default_factory=list)
    sent: int = 0
    left_out: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        shown = [f"seed {self.seed}: {self.sent:,} requests, {len(self.violations)} violations"]
        for phase in self.phases:
            recovered = "" if phase.recovered_s is None else f", well after {phase.recovered_s:.1f} s"
            answers = ", ".join(f"{what} {count}" for what, count in sorted(phase.answers.items()) if "score" in what)
            shown.append(
                f"  {phase.began_at:6.1f} s  {phase.name:34} slowest {phase.slowest_s:4.1f} s{recovered}; {answers}"
            )
        if self.left_out:
            shown.append(f"  left out for want of time: {', '.join(self.left_out)}")
        if self.notes:
            shown.append(f"  while others had the processors, and therefore no violations: {_counted(self.notes)}")
        if self.violations:
            shown.append(f"  violations: {_counted(self.violations)}")
        return [*shown, *(f"  {violation}" for violation in self.violations)]


def _counted(found: Sequence[Violation]) -> str:
    kinds = Counter(f"{each.rule} ({each.under})" for each in found)
    return ", ".join(f"{kind} {times}" for kind, times in kinds.most_common())


def run_day(
    *,
    seconds: float,
    seed: int,
    say: Callable[[str], None],
    only: Sequence[str] = (),
    keep: Path | None = None,
) -> Report:
    """Plays one day. `only`: names of faults, instead of a plan. `keep`: a folder for logs and the ledger."""
    random = Random(seed)
    report = Report(seed=seed)
    with testbed(say=say, keep=keep) as bed:
        run = _Run(bed, random=random, say=say)
        faults = _all_faults(run.day.hot_customer)
        if only:
            steps = [Step(fault=_named(faults, name), lasts_s=_named(faults, name).usual_s) for name in only]
        else:
            steps = plan_day(faults, seconds=seconds, random=random)
            planned = {step.fault.name for step in steps}
            report.left_out = [fault.name for fault in faults if fault.name not in planned]
        say(f"seed {seed}: {len(steps)} faults in about {seconds:.0f} s")
        run.play(steps, latest_s=seconds * MAX_STRETCH if not only else float("inf"))
        report.left_out += run.left_out
        report.violations = run.verdict()
        report.notes = run.conduct.notes
        report.phases, report.sent = run.conduct.phases, run.traffic.sent
    return report


def _all_faults(hot_customer: str) -> list[Fault]:
    return [*postgres_faults.faults(hot_customer), *valkey_faults.faults(), *process_faults.faults()]


def _named(faults: Sequence[Fault], name: str) -> Fault:
    found = next((fault for fault in faults if fault.name == name), None)
    if found is None:
        raise ValueError(f"no fault {name!r}; there are: {', '.join(fault.name for fault in faults)}")
    return found


class _Run:
    def __init__(self, bed: Testbed, *, random: Random, say: Callable[[str], None]) -> None:
        self._bed = bed
        self._say = say
        self._random = random
        self._began = time.monotonic()
        self._probes = itertools.count()
        self._machine = Machine(bed.everything)
        self.left_out: list[str] = []
        self.conduct = Conduct(is_crowded=lambda: self._machine.others_share(last_s=CROWD_S) > CROWDED)
        self.ledger = Ledger(bed.root / "attempts.jsonl")
        self.day = Day(
            bed=bed,
            hot_customer=bed.world.pairs[0][0],
            restored=lambda: self.ledger.doubt_all_before(self._clock()),
        )
        self._requests = Requests(
            random=Random(random.random()), pairs=bed.world.pairs, ledger=self.ledger, now=lambda: datetime.now(UTC)
        )
        self.traffic = Traffic(
            webs=bed.webs,
            requests=self._requests,
            per_second=PER_SECOND,
            random=Random(random.random()),
            ledger=self.ledger,
            conduct=self.conduct,
            clock=self._clock,
        )
        self._stop = threading.Event()
        self._editor = threading.Thread(target=self._edit_policies, name="editor", daemon=True)
        self._at_first: dict[str, ProcessSample] = {}

    def _clock(self) -> float:
        return time.monotonic() - self._began

    # --- the day ---

    def play(self, steps: Sequence[Step], *, latest_s: float) -> None:
        """No fault begins later than `latest_s`: on a slow machine recoveries take longer than was planned."""
        self._machine.start()
        self.traffic.start()
        self._editor.start()
        self._bed.pause(WARM_UP_S)
        self._at_first = evidence.process_samples(self._bed)
        calm = self.conduct.phases[0]
        for number, step in enumerate(steps, start=1):
            if self._clock() > latest_s:
                self.left_out = [left.fault.name for left in steps[number - 1 :]]
                break
            self._say(f"{self._clock():6.1f} s  {number}/{len(steps)} {step.fault.name} for {step.lasts_s:.0f} s")
            self._break(step)
            self.conduct.begin("calm after " + step.fault.name, CALM, at=self._clock())
            self._bed.pause(CALM_S)
        self.conduct.close_phase(calm, at=self._clock())
        self.traffic.stop()
        self._stop.set()
        self._editor.join()
        self._machine.stop()

    def _break(self, step: Step) -> None:
        """Returns when all is well again, or has not become so in time."""
        fault = step.fault
        phase = self.conduct.begin(fault.name, fault.allowed, at=self._clock())
        before, noted = len(self.conduct.violations), len(self.conduct.notes)
        try:
            fault.play(self.day, step.lasts_s)
        except Exception as error:  # the day goes on; what broke the fault is told
            self.conduct.complain("harness", f"{fault.name}: {error!r}", at=self._clock())
        phase.fault_ended_at = self._clock()
        unwell: list[str] = []

        def well() -> bool:
            unwell[:] = self._unwell()
            return not unwell

        phase.recovered_s = evidence.wait_until(well, bed=self._bed, within_s=fault.recovers_within_s)
        if phase.recovered_s is None:
            detail = f"not well {fault.recovers_within_s:g} s after the end of {fault.name}: {'; '.join(unwell)}"
            self.conduct.complain("recovery", detail, at=self._clock())
        self.conduct.close_phase(phase, at=self._clock())
        new, notes = self.conduct.violations[before:], self.conduct.notes[noted:]
        well_after = "NOT WELL" if phase.recovered_s is None else f"well after {phase.recovered_s:.1f} s"
        self._say(f"{self._clock():6.1f} s    {well_after}, slowest {phase.slowest_s:.1f} s, {len(new)} violations")
        for violation in new[:5]:
            self._say(f"            {violation}")
        if notes:
            self._say(f"            while others had the processors: {_counted(notes)}")
        if phase.recovered_s is None:
            self._say(f"            {'; '.join(unwell)}")

    def _unwell(self) -> list[str]:
        """What is not as on a good day."""
        found = []
        for place, web in enumerate(self._bed.webs):
            try:
                ready = web.ask("GET", "/healthz/ready", timeout_s=5.0)
            except (NoConnection, NoAnswer) as error:
                return [f"web-{place}: {error}"]
            if ready.status != 200 or ready.json["status"] != "ready":
                return [f"web-{place}: {ready.body[:300].decode('utf-8', 'replace')}"]
            reply = self.traffic.ask(self._requests.probe(next(self._probes)), web=place)
            if reply is None or reply.status != 200:
                return [f"web-{place}: a score got {reply.status if reply else 'no answer'}"]
            flags = set(reply.json["degraded_reasons"]) - _HARMLESS
            if flags:
                found.append(f"web-{place}: a score is flagged {', '.join(sorted(flags))}")
        waiting = evidence.spooled_lines(self._bed)
        if waiting:
            found.append(f"{waiting} lines in the spool")
        lag_s = evidence.relay_lag_s(evidence.metrics(self._bed))
        if lag_s > 1.0:
            found.append(f"the relay lags {lag_s:.1f} s")
        return found

    def _edit_policies(self) -> None:
        """As an operator does it by SQL; nothing of it matters but that every process hears of it."""
        random = Random(self._random.random())
        while not self._stop.wait(EDIT_EVERY_S):
            with suppress(psycopg.Error), self._bed.database() as session:
                session.execute("SET statement_timeout = '2s'")
                session.execute(
                    "UPDATE features_ttlpolicy SET fresh_for_s = fresh_for_s + %s, grace_s = grace_s + %s "
                    "WHERE name = %s",
                    (random.choice((-1, 1)), random.choice((0, 1)), random.choice(_POLICIES)),
                )

    # --- the verdict ---

    def verdict(self) -> list[Violation]:
        """After a time without traffic."""
        bed, day = self._bed, self.day
        self.conduct.begin("the end", CALM, at=self._clock())
        self._say(f"{self._clock():6.1f} s  the traffic has stopped; looking at what is left")
        bed.pause(SETTLE_S)
        files, metrics = evidence.file_sizes(bed), evidence.metrics(bed)
        bed.pause(STILL_S)
        now = evidence.metrics(bed)
        customers = sorted(self._requests.customers_used)
        merchants = sorted(self._requests.merchants_used)
        entities = [*(("customer", each) for each in customers), *(("merchant", each) for each in merchants)]
        facts = Facts(
            ended_at=self._clock(),
            files=(files, evidence.file_sizes(bed)),
            epochs=(evidence.epochs(metrics), evidence.epochs(now)),
            relay_lag_s=evidence.relay_lag_s(now),
            errors_500=evidence.errors_500(now),
            attempts=self.ledger.attempts(),
            stored=postgres_faults.stored_decisions(bed.postgres),
            refused=evidence.refused_decisions(bed),
            lost_by_restore=day.lost_by_restore,
            labels_told=self.ledger.labels(),
            label_reports=evidence.label_reports(bed),
            spooled_lines=evidence.spooled_lines(bed),
            activity=evidence.activity_rows(bed, customers),
            copies=evidence.stale_copies(bed, entities),
            differences=evidence.different_features(bed, bed.world.pairs, now=datetime.now(UTC)),
            policies=evidence.policies_not_in_force(bed),
            processes=(self._at_first, evidence.process_samples(bed)),
            sessions=evidence.busy_sessions(bed),
            doctor=evidence.doctors_findings(bed),
            silent=[*evidence.silent_processes(bed, within_s=5.0), *self._unended()],
            tracebacks=evidence.tracebacks(bed),
        )
        self.ledger.close()
        return [*self.conduct.violations, *judge(facts)]

    def _unended(self) -> list[str]:
        return [
            f"{name} did not end within {STOP_S:g} s of SIGTERM" for name in self._bed.stop_in_order(within_s=STOP_S)
        ]


def report_as_json(report: Report) -> str:
    """For who compares days."""
    return json.dumps(
        {
            "seed": report.seed,
            "sent": report.sent,
            "violations": [str(violation) for violation in report.violations],
            "notes": [str(note) for note in report.notes],
            "phases": [
                {
                    "name": phase.name,
                    "began_at": phase.began_at,
                    "recovered_s": phase.recovered_s,
                    "slowest_s": phase.slowest_s,
                    "answers": dict(phase.answers),
                }
                for phase in report.phases
            ],
        },
        indent=1,
    )
