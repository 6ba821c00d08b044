"""What `manage.py doctor` examines: a registry, so that each app reports on what it alone knows.

An app registers in its `AppConfig.ready()`:

    from mlserve.platform.diagnosis import register
    register("model", diagnose_active_model)
"""

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass


class Level(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report; `fix` says what to do about a warning or a failure."""

    subject: str
    level: Level
    detail: str
    fix: str = ""


Diagnosis = Callable[[], Iterable[Finding]]

_registry: dict[str, Diagnosis] = {}


def register(subject: str, diagnosis: Diagnosis) -> None:
    """Adds a diagnosis to the doctor's round, in order of registration; the same subject again replaces it."""
    _registry[subject] = diagnosis


def examine() -> list[Finding]:
    """Every diagnosis's findings. One that raises is itself a failure and never hides the others."""
    findings: list[Finding] = []
    for subject, diagnosis in _registry.items():
        try:
            findings.extend(diagnosis())
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            findings.append(
                Finding(
                    subject=subject,
                    level=Level.FAIL,
                    detail=f"could not be examined: {problem}",
                    fix="mend the failures above first, then run the doctor again",
                )
            )
    return findings
