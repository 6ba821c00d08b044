"""What clients may see while something is broken; each answer is held against it as it comes."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.torture.bad_day.violation import Violation

SCORES: Final = frozenset({"score", "repeat", "other", "batch", "probe"})
READS: Final = frozenset({"find", "features", "page"})
"""What asks PostgreSQL and nothing else."""
WRITES: Final = frozenset({"label"})
ALL: Final = SCORES | READS | WRITES | {"forget", "live", "ready"}
OVERLOADED: Final = "overloaded"
OF_TIME: Final = frozenset({"answered", "recovery", "refused", "slow", "spooled", "timeout"})
"""Rules that a machine breaks as well on which others take the processors."""
MAX_OVERLOADED: Final = 0.02
"""Share of the scores of a phase in which nothing holds threads up: a small machine has its moments."""
_OK: Final = {
    "other": frozenset({422}),
    "find": frozenset({200, 404}),
    "ready": frozenset({200, 503}),
}


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """While a fault lasts, and until all is well again. Never: a 500, a 503 without Retry-After, a time-out."""

    refusals: frozenset[str] = frozenset()
    """Kinds of requests that may be answered 503."""
    spools: bool = False
    """Whether decisions may go to the spool. Then other contents under a spooled id may be decided on as well."""
    slowest_s: float = 5.0
    answered: float = 1.0
    """Share of the scores that must be answered with a decision."""
    broken_webs: frozenset[int] = frozenset()
    """Web processes whose connections may break, be refused or time out."""
    held_customer: str = ""
    """Whose scores may be refused, spooled and late, as those of nobody else."""


CALM: Final = Allowed()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, or its absence (`status` None; `problem` then says why). Seconds of the day."""

    kind: str
    what: str
    web: int
    sent_at: float
    seconds: float
    status: int | None
    code: str = ""
    problem: str = ""
    retry_after: bool = False
    timed_out: bool = False
    spooled: bool = False
    customers: tuple[str, ...] = ()


@dataclass
class Phase:
    """From the begin of a fault to the begin of the next one. `recovered_s`: from the fault's end until all is well."""

    name: str
    allowed: Allowed
    began_at: float
    fault_ended_at: float | None = None
    recovered_s: float | None = None
    answers: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def share_answered(self) -> float:
        asked = sum(self.answers[f"score {what}"] for what in ("200", "503", "none", OVERLOADED))
        return self.answers["score 200"] / asked if asked else 1.0


class Conduct:
    """Of one day. Thread-safe. `is_crowded` says whether others have the processors just now: then what breaks a rule
    about times is a note, and no violation."""

    def __init__(self, *, is_crowded: Callable[[], bool] = lambda: False) -> None:
        self._is_crowded = is_crowded
        self.notes: list[Violation] = []
        self.phases: list[Phase] = [Phase("calm", CALM, 0.0)]
        self.violations: list[Violation] = []
        self._lock = threading.Lock()

    @property
    def under(self) -> str:
        return self.phases[-1].name

    def begin(self, name: str, allowed: Allowed, *, at: float) -> Phase:
        with self._lock:
            phase = Phase(name, allowed, at)
            self.phases.append(phase)
            return phase

    def complain(self, rule: str, detail: str, *, at: float) -> None:
        with self._lock:
            self._add(Violation(rule=rule, at=at, under=self.under, detail=detail))

    def examine(self, answer: Answer) -> None:
        """Counts it with the phase in which it was sent, and allows what any phase that it has seen allows."""
        until = answer.sent_at + answer.seconds
        with self._lock:
            seen = [
                phase
                for phase, following in zip(self.phases, [*self.phases[1:], None], strict=True)
                if phase.began_at <= until and (following is None or following.began_at >= answer.sent_at)
            ]
            phase = seen[0]
            phase.answers[f"{answer.kind} {_outcome(answer)}"] += 1
            phase.slowest_s = max(phase.slowest_s, answer.seconds)
            found = faults_of(answer, [phase.allowed for phase in seen])
            for rule, detail in found:
                self._add(
                    Violation(rule=rule, at=answer.sent_at, under=phase.name, detail=f"{_told(answer)}: {detail}")
                )

    def _add(self, found: Violation) -> None:
        (self.notes if found.rule in OF_TIME and self._is_crowded() else self.violations).append(found)

    def close_phase(self, phase: Phase, *, at: float) -> None:
        """Judges shares, once nothing more is expected of it."""
        share = phase.share_answered()
        if share < phase.allowed.answered - (MAX_OVERLOADED if phase.answers[f"score {OVERLOADED}"] else 0.0):
            self.complain(
                "answered",
                f"{share:.0%} of the scores of {phase.name} were answered with a decision, at least "
                f"{phase.allowed.answered:.0%} were to be: {dict(phase.answers)}",
                at=at,
            )


def faults_of(answer: Answer, allowed: Sequence[Allowed]) -> list[tuple[str, str]]:
    """Rule and detail of each thing about `answer` that none of `allowed` allows."""
    found: list[tuple[str, str]] = []
    held = any(each.held_customer in answer.customers for each in allowed)
    broken = any(answer.web in each.broken_webs for each in allowed)
    if answer.status is None:
        if not broken:
            found.append(("timeout" if answer.timed_out else "no answer", answer.problem))
    elif answer.status == 503 and answer.kind != "ready":
        refused = held or broken or any(answer.kind in each.refusals for each in allowed)
        if not refused and answer.code != OVERLOADED:
            found.append(("refused", f"{answer.code}: {answer.problem}"))
        if not answer.retry_after:
            found.append(("retry-after", "503 without Retry-After"))
    elif answer.status not in _OK.get(answer.kind, frozenset({200})):
        # Where the earlier decision cannot be seen, the first content that comes is decided on, the other conflicts.
        decided_anew = answer.status == (200 if answer.kind == "other" else 422) and answer.kind in SCORES
        if not (decided_anew and (held or any(each.spools for each in allowed))):
            found.append(
                ("500" if answer.status >= 500 else "status", f"{answer.status} {answer.code}: {answer.problem}")
            )
    if answer.spooled and not (held or broken) and not any(each.spools for each in allowed):
        found.append(("spooled", "PostgreSQL could have taken the decision, as far as this customer goes"))
    slowest_s = max(each.slowest_s for each in allowed)
    if answer.seconds > slowest_s and not (broken or held or answer.timed_out):
        found.append(("slow", f"{answer.seconds:.1f} s, at most {slowest_s:g} s are promised"))
    return found


def _outcome(answer: Answer) -> str:
    if answer.code == OVERLOADED:
        return OVERLOADED
    return "none" if answer.status is None else str(answer.status)


def _told(answer: Answer) -> str:
    return f"{answer.kind} {answer.what} of web-{answer.web}"
