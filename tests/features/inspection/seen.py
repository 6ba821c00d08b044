"""What an inspector has seen."""

from features.inspection.inspector import Inspector
from features.inspection.verdicts import Cause


def checked_by(inspector: Inspector) -> dict[tuple[int, str], int]:
    """By horizon in seconds and tier."""
    return {place: count.checked for place, count in inspector.tally.counts.of.items()}


def causes_of(inspector: Inspector, tier: str = "l2") -> list[Cause]:
    return [found.cause for found in inspector.tally.findings if found.tier == tier]


def looks_again(inspector: Inspector) -> bool:
    """Whether one more look is concluded."""
    inspector.run(0)
    return not inspector.tally.trouble
