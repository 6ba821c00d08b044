"""Numbers for people."""

from math import inf

import pytest

from mlserve.console import units
from mlserve.console.window import Span


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.share(0.0), "0 %"),
        (units.share(0.00001), "< 0.1 %"),
        (units.share(0.9995), "> 99.9 %"),
        (units.share(1.0), "100 %"),
        (units.share(0.973), "97.3 %"),
        (units.latency(4.09e-6), "4.09 µs"),
        (units.latency(0.0123), "12.3 ms"),
        (units.latency(1.5), "1.50 s"),
        (units.latency(inf), "> 2.5 s"),
        (units.span(0), "0 s"),
        (units.span(0.25), "0.25 s"),
        (units.span(0.01), "0.01 s"),
        (units.span(0.000563), "563 µs"),
        (units.span(90), "1 min 30 s"),
        (units.span(86_400), "1 d"),
        (units.span(90_061), "1 d 1 h"),
        (units.age(None), units.NOTHING),
        (units.age(Span(0, 1)), "up to 1 s"),
        (units.age(Span(900, 1200)), "15 to 20 min"),
        (units.age(Span(2700, 3600)), "45 min to 1 h"),
        (units.age(Span(3600, 5400)), "1 h to 1 h 30 min"),
        (units.age(Span(3 * 86_400, inf)), "over 3 d"),
        (units.rate(0.0), "0/s"),
        (units.rate(1234.5), "1,234/s"),
        (units.rate(0.0123), "0.012/s"),
        (units.size(0), "0 B"),
        (units.size(11.1 * 1024**2), "11.1 MiB"),
        (units.size(3 * 1024**4), "3,072 GiB"),
        (units.count(1234567), "1,234,567"),
        (units.moment(0.0), "00:00:00 UTC"),
        (units.without_zeros("75.0 %"), "75 %"),
        (units.without_zeros("10.0 ms"), "10 ms"),
        (units.without_zeros("1,000/s"), "1,000/s"),
        (units.without_zeros("0.005 s"), "0.005 s"),
    ],
)
def test_numbers_carry_their_units(written: str, expected: str) -> None:
    """Three digits that count; what is not quite nothing is not written as nothing."""
    assert written.replace("\N{NARROW NO-BREAK SPACE}", " ") == expected


@pytest.mark.parametrize("write", [units.share, units.latency, units.span, units.rate, units.count, units.size])
def test_what_is_not_known_is_a_dash(write) -> None:
    """None is not zero."""
    assert write(None) == units.NOTHING
