"""How a file writes its amounts: 1234.50, 1,234.50, 1.234,50 or 1 234,50. Found out from the whole column, or told.

One text alone may be two numbers: `1.500` is one and a half, or fifteen hundred. Others are only one: `12,50` has a
decimal comma, `0.500` no thousands. So the column is read through before anything is loaded. What its texts prove is
how all of them are read; where they contradict one another, or none of them proves anything and one could be read in
two ways, nothing is loaded until somebody says which it is.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from features.transactions.layouts import FIELDS
from features.transactions.rows import TransactionFile

_AMOUNT_PLACE: Final = FIELDS.index("amount")
SPACES: Final = " \u00a0\u202f"
"""A plain one, one that does not break, and a narrow one: all are one and the same separator."""
SEPARATORS: Final = {"comma": ",", "point": ".", "space": " ", "apostrophe": "'", "none": ""}
"""What `--decimal` (the first two) and `--thousands` take, beside the characters themselves."""
_GROUPED: Final = {
    mark: re.compile(rf"[+-]?[0-9]{{1,3}}(?:{re.escape(mark)}[0-9]{{3}})+(?P<rest>(?:[.,][0-9]*)?)") for mark in ",.'"
} | {" ": re.compile(rf"[+-]?[0-9]{{1,3}}(?:[{SPACES}][0-9]{{3}})+(?P<rest>(?:[.,][0-9]*)?)")}
_SPLIT: Final = re.compile(r"[+-]?(?P<whole>[0-9]*)(?P<mark>[.,])(?P<decimals>[0-9]*)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class NumberStyle:
    """`decimal`: comma or point. `thousands`: what may stand between groups of three digits, none if empty."""

    decimal: str = "."
    thousands: str = ""

    @property
    def is_plain(self) -> bool:
        """As programs write numbers: nothing needs to be changed."""
        return self.decimal == "." and not self.thousands

    def plain(self, text: str) -> str:
        """The number with a decimal point and no separators; the text itself if it is none of this style."""
        for mark in self.thousands:
            grouped = _GROUPED[mark].fullmatch(text)
            if grouped and grouped["rest"][:1] in ("", self.decimal):
                whole = text[: len(text) - len(grouped["rest"])]
                return re.sub(r"[^0-9+-]", "", whole) + grouped["rest"].replace(",", ".")
        if self.decimal == ",":
            return _NO_NUMBER if "." in text else text.replace(",", ".", 1)
        return text

    def __str__(self) -> str:
        groups = " or ".join(_NAME[mark] for mark in self.thousands) or "none"
        return f"decimal {_NAME[self.decimal]}, thousands {groups}"


PLAIN: Final = NumberStyle()
_NAME: Final = {character: name for name, character in SEPARATORS.items()}
_NO_NUMBER: Final = "not a number of this style"


class StyleUnclear(Exception):
    """The amounts can be read in two ways. The message shows some, and how to say which it is."""


@dataclass(slots=True)
class _Seen:
    """Of one column, with the line of the first text of each kind."""

    proof: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By decimal mark: a text that can be read with this one only."""
    unclear: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By the mark in it: a text of one mark and three digits behind it."""
    thousands: set[str] = field(default_factory=set)

    def look(self, line: int, text: str) -> None:
        for mark, pattern in _GROUPED.items():
            grouped = pattern.fullmatch(text)
            if not grouped:
                continue
            decimal = grouped["rest"][:1]
            if decimal == mark:
                return  # 1,234,5: no number in any style
            several = sum(text.count(each) for each in (SPACES if mark == " " else mark)) > 1
            if mark in ".," and not decimal and not several:
                break  # 1.500, one group and nothing else
            self.thousands.add(mark)
            if decimal or mark in ".,":
                self.proof.setdefault(decimal or _OTHER[mark], (line, text))
            return
        split = _SPLIT.fullmatch(text)
        if split is None:
            return
        whole, decimals = split["whole"], split["decimals"]
        if len(decimals) == 3 and 1 <= len(whole) <= 3 and not whole.startswith("0") and "e" not in text.lower():
            self.unclear.setdefault(split["mark"], (line, text))
        else:
            self.proof.setdefault(split["mark"], (line, text))

    def style(self) -> NumberStyle:
        if len(self.proof) > 1:
            (a, one), (b, other) = sorted(self.proof.values())
            raise StyleUnclear(f"amounts are written in two styles: {one!r} in line {a:,} and {other!r} in line {b:,}")
        if not self.proof and self.unclear:
            line, text = min(self.unclear.values())
            raise StyleUnclear(f"no amount of the file says whether {text!r} in line {line:,} is {_both(text)}")
        decimal = next(iter(self.proof), ".")
        thousands = (self.thousands | self.unclear.keys()) - {decimal}
        return NumberStyle(decimal, "".join(sorted(thousands)))


_OTHER: Final = {",": ".", ".": ","}


def _both(text: str) -> str:
    whole, decimals = re.split(r"[.,]", text)
    return f"{whole}{decimals} or {whole}.{decimals}"


def style_of(file: TransactionFile, *, rows: int, progress: Callable[[float, str], None]) -> NumberStyle:
    """How the file's amounts are written: `PLAIN` where they are numbers already. Raises StyleUnclear or FileError."""
    if file.amounts_are_numbers:
        return PLAIN
    seen = _Seen()
    for line, text, fraction in _amounts(file, rows):
        if not text.isdigit():
            seen.look(line, text)
        if fraction is not None:
            progress(fraction, "looking how amounts are written")
    return seen.style()


def _amounts(file: TransactionFile, rows: int) -> Iterator[tuple[int, str, float | None]]:
    for batch in file.batches(rows=rows):
        fraction: float | None = batch.fraction
        for line, cells in zip(batch.lines, batch.rows, strict=True):
            yield line, (cells[_AMOUNT_PLACE] or "").strip(" "), fraction
            fraction = None
