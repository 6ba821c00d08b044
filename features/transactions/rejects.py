"""The rejects file: line, field, reason and value of every row that was not loaded, safe to open in a spreadsheet."""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from features.transactions.rows import Reject

COMMONEST = 3
_REASONS_MAX = 1000
"""Distinct reasons that are counted; a few name a value, and a file may be long."""
COLUMNS = ("line", "field", "reason", "value")
VALUE_CHARACTERS_MAX = 200
# With these a spreadsheet takes a cell for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class RejectsFile:
    """Written as rejects come; made, or overwritten, with the first of them. Counts them.

    `path` is None until there is something in the file.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self.first: Reject | None = None
        self._reasons: Counter[str] = Counter()
        self._wanted = path
        self._file: TextIO | None = None
        self._writer: Any = None

    @property
    def path(self) -> Path | None:
        return self._wanted if self.count else None

    def write(self, rejects: Iterable[Reject]) -> None:
        """Raises OSError if the file cannot be written."""
        for reject in rejects:
            if self._file is None:
                self._file = self._wanted.open("w", encoding="utf-8", newline="")
                self._writer = csv.writer(self._file, lineterminator="\n")
                self._writer.writerow(COLUMNS)
            self.count += 1
            self.first = self.first or reject
            reason = f"{reject.field or 'row'} {reject.reason}"
            if reason in self._reasons or len(self._reasons) < _REASONS_MAX:
                self._reasons[reason] += 1
            self._writer.writerow((reject.line, reject.field, reject.reason, printable(reject.value)))

    def commonest(self) -> list[str]:
        """Up to three reasons with their counts, the commonest first: `customer_id is missing (12)`."""
        return [f"{reason} ({count:,})" for reason, count in self._reasons.most_common(COMMONEST)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def printable(value: str) -> str:
    """At most 200 characters on one line, with what cannot be printed escaped, and never a formula."""
    text = "".join(map(_escaped, value[:VALUE_CHARACTERS_MAX]))
    if text.startswith(_FORMULA) or value.startswith(_FORMULA):
        text = "'" + text
    return text[:VALUE_CHARACTERS_MAX]


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as surrogateescape carries it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
