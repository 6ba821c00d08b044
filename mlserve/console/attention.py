"""What an operator should look at first, in plain words and with the next step."""

from typing import Final

import msgspec

from mlserve.console import units
from mlserve.console.report import Report

_DEGRADED_SHARE_TO_MENTION = 0.01
_MEMORY_SHARE_TO_MENTION = 0.9


class Notice(msgspec.Struct, frozen=True):
    """`level` is `error` or `warning`, as in the admin's messages."""

    level: str
    text: str


def notices(report: Report, *, history_error: str, unproven: str = "") -> list[Notice]:
    """The gravest first; empty if all is well. `unproven`: a sentence of `proven.py`."""
    found: list[Notice] = []
    if report.in_force_error:
        found.append(Notice("error", f"Postgres is not reachable: {report.in_force_error}"))
    elif report.model is None:
        found.append(Notice("error", "No model is active, so nothing can be scored. Train one: manage.py train"))
    if not report.l2.reachable:
        found.append(Notice("error", f"L2 is not reachable, so misses go to Postgres: {report.l2.error}"))
    found.extend(_unconfirmed(report))
    found.extend(_breakers(report))
    if unproven:
        found.append(Notice("warning", unproven))
    if (report.scores.degraded_share or 0) >= _DEGRADED_SHARE_TO_MENTION:
        share = units.share(report.scores.degraded_share)
        found.append(
            Notice("warning", f"{share} of the scores are degraded: the system could not say what it should have")
        )
    if report.source.errors:
        errors = ", ".join(f"{reason} {count:,} times" for reason, count in report.source.errors.items())
        found.append(Notice("error", f"Reads of Postgres failed: {errors}"))
    if report.journal.spooled:
        text = f"{report.journal.spooled:,} decisions went to the spool because Postgres could not take them"
        found.append(Notice("warning", text))
    if report.l2.max_bytes and report.l2.used_bytes >= _MEMORY_SHARE_TO_MENTION * report.l2.max_bytes:
        share = units.share(report.l2.used_bytes / report.l2.max_bytes)
        found.append(Notice("warning", f"L2 has used {share} of its memory and evicts by {report.l2.eviction_policy}"))
    if history_error:
        found.append(
            Notice("warning", f"No charts: the broker, which keeps the series, is not reachable: {history_error}")
        )
    return found


_OTHER: Final = {
    "model": "score with another model than the one that is active, or with a copy that Postgres has not confirmed",
    "policies": "obey a copy of the policies that Postgres has not confirmed",
}


def _unconfirmed(report: Report) -> list[Notice]:
    found = []
    for what, words in _OTHER.items():
        pids = [str(each.pid) for each in report.unconfirmed if each.what == what]
        if pids:
            text = f"Processes {words}: {', '.join(pids)}. Their scores say so; /healthz/ready and doctor say why"
            found.append(Notice("error", text))
    return found


def _breakers(report: Report) -> list[Notice]:
    found = []
    for tier in sorted({breaker.tier for breaker in report.breakers if breaker.openness}):
        pids = [str(breaker.pid) for breaker in report.breakers if breaker.tier == tier and breaker.openness]
        processes = "process" if len(pids) == 1 else "processes"
        found.append(Notice("error", f"The breaker of {tier.upper()} is not closed in {processes} {', '.join(pids)}"))
    return found
