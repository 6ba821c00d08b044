"""What command lines may say: whole numbers of a range, for `type=` of argparse, which names the option itself."""

from argparse import ArgumentTypeError
from collections.abc import Callable


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Takes `low` to `high`, both included; refuses anything else with the range in the message."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            shown = str(low), str(high) if high < 100_000 else f"{high:,}"
            raise ArgumentTypeError(f"{text[:40]!r} is not a whole number from {shown[0]} to {shown[1]}")
        return value

    return parse
