"""When a payment may have occurred: one rule for the API, files, simulations and labels."""

from datetime import UTC, datetime, timedelta
from typing import Final

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_AHEAD: Final = timedelta(days=1)
"""Clocks of clients and time zones may be wrong by this much."""
UNLIKELY_BEFORE: Final = datetime(1990, 1, 1, tzinfo=UTC)
"""Earlier moments are taken and named: most are a zero, or seconds where milliseconds were meant."""
_MICROSECOND_DIGITS = 6


def wrong_moment(moment: datetime, now: datetime) -> str | None:
    """What is wrong with an aware moment; None if it may enter the ledger at `now`."""
    if moment < EARLIEST:
        return "before 1970"
    if moment - now > LATEST_AHEAD:
        return f"more than a day ahead of the server's time, {now:%Y-%m-%dT%H:%M:%SZ}"
    return None


def moment_of(text: str) -> datetime:
    """`datetime.fromisoformat`, rounded to the microsecond, halves up, as the JSON decoder of the API rounds.

    Python cuts digits off; a payment sent to the API and imported would then have two moments. Raises ValueError, and
    OverflowError at the end of the year 9999.
    """
    moment = datetime.fromisoformat(text)
    dot = max(text.find("."), text.find(","))
    seventh = text[dot + 1 + _MICROSECOND_DIGITS :][:1] if dot >= 0 and _digits_after(text, dot) else ""
    return moment + timedelta(microseconds=1) if seventh >= "5" else moment


def _digits_after(text: str, dot: int) -> bool:
    """Whether there are more digits than microseconds have."""
    return text[dot + 1 : dot + 2 + _MICROSECOND_DIGITS].isdigit() and len(text) > dot + 1 + _MICROSECOND_DIGITS
