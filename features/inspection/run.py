"""The inspector's run that beat asks for."""

from datetime import datetime

import structlog
from django.db import DatabaseError, InterfaceError

from features.inspection import results
from features.inspection.wiring import make_inspector

RUN_S = 10.0
"""Of the fifteen seconds between two runs. Lines of the pause are looked at by the next one, some seconds late."""
_log = structlog.get_logger(__name__)


def inspect(*, now: datetime, seconds: float = RUN_S) -> None:
    """Looks for so long. Who is away is logged; what could not be looked at is left to the next run."""
    try:
        results.prune(now=now)
    except (DatabaseError, InterfaceError) as error:
        _log.warning("inspection_waits", waits_for=f"Postgres: {error}")
        return
    inspector = make_inspector()
    inspector.run(seconds)
    tally = inspector.tally
    _log.info(
        "inspected",
        looks=tally.looks,
        writes=sum(count.checked for (_, tier), count in tally.counts.of.items() if tier == results.ALL_TIERS),
        inconsistent=tally.inconsistent,
        processes=len(tally.processes),
        waits_for=tally.trouble,
    )
