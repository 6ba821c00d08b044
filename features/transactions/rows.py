"""What readers hand on: rows of text cells with their place in the file, and the places that could not be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

Cells = tuple[str | None, str | None, str | None, str | None, str | None, str | None, str | None]
"""One cell for each of `layouts.FIELDS`, in that order; None where the file has nothing."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not loaded. `field` is empty if the row as a whole is at fault."""

    line: int
    field: str
    reason: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBatch:
    """Some rows in file order. `lines` are physical lines of a CSV file (header: 1), row numbers from 1 of Parquet.

    `unreadable` are rows without cells; `fraction` is the share of the file that has been read, 0 to 1.
    """

    lines: list[int]
    rows: list[Cells]
    unreadable: list[Reject]
    fraction: float


class FileError(Exception):
    """The file as a whole cannot be read. The message says why and what to do."""


class TransactionFile(Protocol):
    """An opened file. It can be read more than once, from its start, in bounded memory."""

    layout: str
    unused_columns: list[str]
    """Those that are no field's."""
    amounts_are_numbers: bool
    """Not text, which may be written in one way or another."""

    def batches(self, *, rows: int) -> Iterator[RawBatch]:
        """All rows, at most `rows` in a batch. Raises FileError if the rest of the file is damaged."""
        ...
