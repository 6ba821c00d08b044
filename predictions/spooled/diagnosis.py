"""What health, doctor and metrics say of the decisions that wait in the spool, and of those that were refused."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from django.utils import timezone
from prometheus_client import Gauge

from mlserve.errors import MlserveError
from mlserve.observability import metrics
from mlserve.platform.diagnosis import Finding, Level
from predictions import delivery, spool
from predictions.spooled.survey import Survey, survey

WAITS_LONG_S = 60.0
"""Delivery looks once a second: what waits for longer is held up by something."""
MIN_FREE_BYTES = 64 << 20
"""Room for some 15,000 decisions."""


class SpoolUnsound(MlserveError):
    """Decisions could not be kept on this host if PostgreSQL went away now, or some that were refused find no room."""


def spool_is_sound() -> str:
    """For `/healthz/ready`: how much waits. Raises SpoolUnsound.

    Starts the delivery: a process that nobody has asked for a score yet delivers as well.
    """
    delivery.ensure_delivering()
    found = survey()
    if problem := _problem_of(spool.folder()):
        raise SpoolUnsound(problem)
    if found.is_full:
        raise SpoolUnsound("refused decisions find no room and stay in the spool")
    if not found.decisions:
        return "nothing waits" if not found.refused else f"nothing waits; {found.refused:,} refused"
    return f"{found.decisions:,} decisions wait, the oldest for {_waits_s(found):,.0f} s; {found.refused:,} refused"


def diagnose_spool() -> Iterator[Finding]:
    """Nothing should wait for longer than a minute, nor be refused."""
    folder, found = spool.folder(), survey()
    findings = [*_about_the_disk(folder, found), *_about_waiting(folder, found), *_about_refused(found)]
    if findings:
        yield from findings
    elif found.decisions:
        detail = f"{found.decisions:,} decisions wait, the oldest for {_waits_s(found):,.0f} s"
        yield Finding(subject="spool", level=Level.OK, detail=detail)
    else:
        yield Finding(subject="spool", level=Level.OK, detail=f"nothing waits in {folder}, nothing was refused")


def measure_spool() -> Mapping[Gauge, Mapping[str, float]]:
    """The spool's gauges. `oldest` is 0 if nothing waits."""
    found = survey()
    return {
        metrics.SPOOL_DECISIONS: {"waiting": found.decisions, "refused": found.refused},
        metrics.SPOOL_BYTES: {"waiting": found.bytes, "refused": found.refused_bytes},
        metrics.SPOOL_OLDEST: {"waiting": _waits_s(found)},
    }


def _about_the_disk(folder: Path, found: Survey) -> Iterator[Finding]:
    if problem := _problem_of(folder):
        fix = f"see to the disk of {folder} (MLSERVE_VAR_DIR): the user of the web process must be able to write there"
        yield Finding(subject="spool", level=Level.FAIL, detail=problem, fix=fix)
    if found.unreadable:
        detail = f"cannot be read, so not delivered: {', '.join(found.unreadable[:5])} in {folder}"
        fix = "give them to the user of the web process, or run this command as that user"
        yield Finding(subject="spool", level=Level.WARN, detail=detail, fix=fix)


def _about_waiting(folder: Path, found: Survey) -> Iterator[Finding]:
    waits_s = _waits_s(found)
    if waits_s <= WAITS_LONG_S:
        return
    held = sum(file.held for file in found.files)
    detail = f"{found.decisions:,} decisions wait in {folder}, the oldest for {waits_s:,.0f} s"
    if held:
        detail += f"; {held:,} are held up alone: locked by somebody, or PostgreSQL fails at them"
    fix = (
        "see that PostgreSQL takes writes and that a web process runs on this host; "
        "`manage.py spool deliver` delivers what a process that is gone left behind, and says what is in the way"
    )
    yield Finding(subject="spool", level=Level.WARN, detail=detail, fix=fix)


def _about_refused(found: Survey) -> Iterator[Finding]:
    if found.is_full:
        detail = "the refused files are full or cannot be written; what PostgreSQL refuses stays in the spool"
        yield Finding(subject="spool", level=Level.FAIL, detail=detail, fix=_FIX_REFUSED)
    if found.refused:
        detail = f"{found.refused:,} decisions that clients were told were refused by PostgreSQL"
        yield Finding(subject="spool", level=Level.WARN, detail=detail, fix=_FIX_REFUSED)


_FIX_REFUSED = (
    "`manage.py spool list` says why; mend the cause and `manage.py spool retry`, "
    'or `manage.py spool drop TRANSACTION_ID --reason "..."`'
)


def _waits_s(found: Survey) -> float:
    oldest_at = found.oldest_at
    return 0.0 if oldest_at is None else max(0.0, timezone.now().timestamp() - oldest_at)


def _problem_of(folder: Path) -> str:
    """Why a decision could not be kept now; empty if nothing speaks against it. Names no path: health is public."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return "a file stands where the spool's folder should be"
    if not os.access(there, os.W_OK | os.X_OK):
        return "the spool's folder cannot be written"
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        return f"the spool's disk has {free / (1 << 20):,.0f} MB left"
    return ""
