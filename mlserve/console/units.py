"""How numbers are written for people: three digits that count, and always the unit. None is a dash."""

import re
from datetime import UTC, datetime
from math import inf, isinf, log10

from mlserve.console.window import Span

NOTHING = "\N{EN DASH}"
_THIN = "\N{NARROW NO-BREAK SPACE}"
_TIME_STEPS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SHORT_S = 0.01
"""Below, a duration is written in milliseconds: 0.000563 s is hard to read."""
_SPAN_STEPS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def share(value: float | None) -> str:
    """A share of 1 in per cent. What is not quite nothing or all is never rounded to it."""
    if value is None:
        return NOTHING
    percent = 100 * value
    if 0 < percent < 0.1:
        return f"<{_THIN}0.1{_THIN}%"
    if 99.9 < percent < 100:
        return f">{_THIN}99.9{_THIN}%"
    return f"{percent:.1f}{_THIN}%" if percent not in (0.0, 100.0) else f"{percent:.0f}{_THIN}%"


def latency(seconds: float | None) -> str:
    """From microseconds to seconds."""
    if seconds is None:
        return NOTHING
    if isinf(seconds):
        return f">{_THIN}2.5{_THIN}s"
    for size, unit in _TIME_STEPS:
        if seconds >= size or unit == "µs":
            return f"{_digits(seconds / size)}{_THIN}{unit}"
    raise AssertionError("the last step takes everything")


def span(seconds: float | None) -> str:
    """A duration up to days in its two largest parts, `1 h 30 min`; below 10 ms as `latency` writes it."""
    if seconds is None:
        return NOTHING
    if isinf(seconds):
        return "∞"
    if 0 < seconds < _SHORT_S:
        return latency(seconds)
    if seconds < 10:
        return f"{seconds:.3g}{_THIN}s"
    rest = round(seconds)
    parts = []
    for size, unit in _SPAN_STEPS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{_THIN}{unit}")
    return " ".join(parts[:2])


def age(bucket: Span | None) -> str:
    """As exact as the bucket that it is known by: `15 to 20 min`, `45 min to 1 h`, `up to 1 s`, `over 3 d`."""
    if bucket is None:
        return NOTHING
    first, last = span(bucket.lower), span(bucket.upper)
    if isinf(bucket.upper):
        return f"over {first}"
    if not bucket.lower:
        return f"up to {last}"
    same_unit = first.partition(_THIN)[2] == last.partition(_THIN)[2]
    return f"{first.partition(_THIN)[0] if same_unit else first} to {last}"


def rate(per_second: float | None) -> str:
    return NOTHING if per_second is None else f"{_digits(per_second)}/s"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{round(value):,}"


def size(value: float | None) -> str:
    """Bytes, in powers of 1024."""
    if value is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{_digits(value) if unit != 'B' else round(value)}{_THIN}{unit}"
        value /= 1024
    raise AssertionError("the last step takes everything")


def moment(at: float) -> str:
    """Seconds since 1970 as a time of day in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"


def without_zeros(written: str) -> str:
    """For the ticks of an axis, which are round: `75.0 %` as `75 %`."""
    return re.sub(r"\.0+(?!\d)", "", written)


def _digits(value: float) -> str:
    """Three digits that count, no exponent, thousands with commas."""
    if value in (0, inf):
        return "0" if value == 0 else "∞"
    decimals = max(0, min(3, 2 - int(log10(abs(value)) // 1)))
    return f"{value:,.{decimals}f}"
