"""What comes after a load: the features of whom it was about follow, before the command ends."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import DatabaseError

from features.catch_up import catch_up
from features.definitions import EMBEDDINGS
from features.progress import shown

MOST_S = 600.0
"""Longer than a load of millions takes. What is left then is a worker's, as where no command is at work."""


def caught_up_with_ledger(say: Callable[[str], Any], *, now: datetime) -> dict[str, Any]:
    """Brings the features up to date, for the command's result: `features`, rows derived anew by group, and `behind`,
    entities by group that are served flagged until a worker or a build has come to them.

    The load is committed and stays. If Postgres fails `say` tells it, and workers do the rest.
    """
    try:
        with shown() as progress:
            report = catch_up(now=now, most_s=MOST_S, progress=progress)
    except DatabaseError as error:
        say(f"warning: the features do not follow yet and are served flagged: {error}")
        return {"features": {}, "behind": None}
    if report.pending:
        say(f"warning: L2 does not answer: {report.pending:,} copies of what changed stay there until their limits")
    return {"features": report.rows, "behind": {of.group: of.entities for of in report.waiting}}


def in_words(result: dict[str, Any]) -> str:
    """One line for people."""
    derived = ", ".join(f"{rows:,} rows of {group}" for group, rows in result["features"].items() if rows)
    words = f"features that follow from it: {derived or 'none'}"
    behind = result["behind"] or {}
    waiting = ", ".join(f"{group} of {count:,}" for group, count in behind.items())
    if not waiting:
        return words
    by_hand = f"manage.py build_features --groups {','.join(group for group in behind if group in EMBEDDINGS)}"
    how = f"a worker, or `{by_hand}`" if set(behind) & set(EMBEDDINGS) else "a worker"
    return f"{words}; flagged stale until {how} has come to them: {waiting}"
