"""The system check of what the database must hold for feature rows.

| id | finding | when |
| --- | --- | --- |
| mlserve.W006 | a guard of feature rows is broken | checks with `--database`, and before `migrate` |

A warning, because it is asked before `migrate` too, which may be what mends it.
"""

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import Error

from features.guards import broken_guards


@register(Tags.database)
def check_guards(*, databases: Sequence[str] | None, **_: Any) -> list[CheckMessage]:
    """W006, by asking PostgreSQL; if it does not answer, that is the doctor's business."""
    if not databases:
        return []
    try:
        broken = broken_guards()
    except Error:
        return []
    return [
        Warning(f"Changes of features may escape the cache: {guard.problem}.", hint=guard.fix, id="mlserve.W006")
        for guard in broken
    ]
