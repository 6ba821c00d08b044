"""CSV to rows that know their physical line, whatever the quoting does.

`csv.reader` counts lines but cannot say where a record began, and one quote that is never closed makes it swallow the
rest of the file as a single cell. Here the reader is fed by an iterator that remembers the lines of the current record
and ends it after `RECORD_LINES_MAX`. If a record cannot be parsed, its first line is rejected and reading goes on with
the line after it: a broken quote costs one row, not the file.
"""

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from features.transactions.layouts import FIELDS, column_positions, layout_of, unused_columns
from features.transactions.rows import Cells, FileError, RawBatch, Reject

DELIMITERS = ",;\t|"
RECORD_LINES_MAX = 100
LINE_CHARACTERS_MAX = 120_000
"""Under the csv module's limit for one cell (131,072), so that every line that is read can be parsed."""


class CsvTransactions:
    """A CSV file with a header, UTF-8 with or without byte order mark. Without a delimiter it is found in the header.

    Raises FileError if there is no header, LayoutError if it lacks columns.
    """

    def __init__(
        self, path: Path, *, layout: str | None, mapping: Mapping[str, str], delimiter: str | None = None
    ) -> None:
        self.path = path
        self._size = max(1, path.stat().st_size)
        with path.open("rb") as file:
            lines = _Lines(file)
            header = lines.first_line()
            if header is None:
                raise FileError(f"{path}: the file is empty; the first line must name the columns")
            if any("\udc80" <= character <= "\udcff" or character == "\0" for character in header):
                raise FileError(f"{path}: the header is not UTF-8 text; save the file as UTF-8")
            self.delimiter = delimiter or _delimiter_of(header)
            columns = _header_cells(lines, self.delimiter)
        self.layout = layout_of(columns, layout=layout)
        self.amounts_are_numbers = False
        self._width = len(columns)
        positions = column_positions(columns, layout=self.layout, mapping=mapping)
        self.unused_columns = unused_columns(columns, positions)
        # One position past the row's end, where `batches` puts a None for fields without a column.
        self._positions = tuple(positions.get(field, self._width) for field in FIELDS)

    def batches(self, *, rows: int) -> Iterator[RawBatch]:
        with self.path.open("rb") as file:
            lines = _Lines(file)
            _header_cells(lines, self.delimiter)
            batch = RawBatch(lines=[], rows=[], unreadable=[], fraction=0.0)
            for line, cells in _records(lines, self.delimiter, batch.unreadable):
                self._add(batch, line, cells)
                if len(batch.lines) + len(batch.unreadable) >= rows:
                    yield RawBatch(
                        lines=batch.lines.copy(),
                        rows=batch.rows.copy(),
                        unreadable=batch.unreadable.copy(),
                        fraction=min(1.0, file.tell() / self._size),
                    )
                    for collected in (batch.lines, batch.rows, batch.unreadable):
                        collected.clear()
            yield RawBatch(lines=batch.lines, rows=batch.rows, unreadable=batch.unreadable, fraction=1.0)

    def _add(self, batch: RawBatch, line: int, cells: list[str]) -> None:
        if len(cells) == self._width:
            row: list[str | None] = [*cells, None]
            a, b, c, d, e, f, g = self._positions
            picked: Cells = (row[a], row[b], row[c], row[d], row[e], row[f], row[g])
            batch.lines.append(line)
            batch.rows.append(picked)
        else:
            amount = "few" if len(cells) < self._width else "many"
            reason = f"too {amount} cells: {len(cells)} instead of {self._width}"
            batch.unreadable.append(Reject(line, "", reason, self.delimiter.join(cells)))


class _LineTooLong(Exception):
    """Ends the record that a line belongs to."""


class _Lines:
    """Physical lines for one `csv.reader`, with the number of the record's first line and a way back to it."""

    def __init__(self, file: BinaryIO) -> None:
        # surrogateescape keeps invalid bytes visible to the validator; newline="" keeps quoted line ends as they are.
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._again: deque[str] = deque()
        self._record: list[str] = []
        self.line = 1
        """The physical line on which the current record begins."""

    def first_line(self) -> str | None:
        """The next line without consuming it; None at the end."""
        line = self._read()
        if line:
            self._again.appendleft(line)
        return line or None

    def begin_record(self) -> None:
        """What was read so far has been dealt with."""
        self.line += len(self._record)
        self._record.clear()

    def drop_first_line(self) -> str:
        """Gives up the record's first line, returns it, and lets its other lines be read again."""
        first, *others = self._record
        self._again.extendleft(reversed(others))
        self._record.clear()
        self.line += 1
        return first

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if len(self._record) >= RECORD_LINES_MAX:
            raise StopIteration
        line = self._read()
        if not line:
            raise StopIteration
        self._record.append(line)
        if len(line) > LINE_CHARACTERS_MAX:
            raise _LineTooLong(f"the line is longer than {LINE_CHARACTERS_MAX:,} characters")
        return line

    def _read(self) -> str:
        if self._again:
            return self._again.popleft()
        line = self._text.readline(LINE_CHARACTERS_MAX + 1)
        if len(line) > LINE_CHARACTERS_MAX:
            rest = line
            while rest and rest[-1] not in "\r\n":
                rest = self._text.readline(LINE_CHARACTERS_MAX)
        return line


def _records(lines: _Lines, delimiter: str, unreadable: list[Reject]) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of every record; blank lines are passed over, what cannot be parsed goes to `unreadable`."""
    while True:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        lines.begin_record()
        try:
            for cells in reader:
                if cells:
                    yield lines.line, cells
                lines.begin_record()
            return
        except (csv.Error, _LineTooLong) as error:
            number = lines.line
            line = lines.drop_first_line()
            unreadable.append(Reject(number, "", _unparsable(error), line.rstrip("\r\n")))


def _unparsable(error: Exception) -> str:
    if "unexpected end" in str(error):
        return f"a quote is not closed within {RECORD_LINES_MAX} lines"
    return f"the record cannot be parsed: {error}"


def _header_cells(lines: _Lines, delimiter: str) -> list[str]:
    refused: list[Reject] = []
    for _line, cells in _records(lines, delimiter, refused):
        if refused:
            raise FileError(f"line {refused[0].line}: the header cannot be read: {refused[0].reason}")
        return [cell.strip() for cell in cells]
    raise FileError("the file has no header; the first line must name the columns")


def _delimiter_of(header: str) -> str:
    """The delimiter that splits the header into most cells; the first of DELIMITERS where they are equal."""
    return max(DELIMITERS, key=lambda delimiter: len(_split(header, delimiter)))


def _split(header: str, delimiter: str) -> list[str]:
    return next(csv.reader([header], delimiter=delimiter), [])
