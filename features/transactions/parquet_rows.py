"""Parquet to rows of text, a row group at a time, so that one validator judges every kind of file.

Arrow writes the text: shortest decimals that read back as the same number, times in UTC.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.transactions.layouts import FIELDS, LayoutError, column_positions, layout_of, unused_columns
from features.transactions.rows import FileError, RawBatch


class ParquetTransactions:
    """Raises FileError if it is no Parquet file, LayoutError if columns are missing or of a type that cannot serve."""

    def __init__(self, path: Path, *, layout: str | None, mapping: Mapping[str, str]) -> None:
        self.path = path
        with self._opened() as file:
            schema: pa.Schema = file.schema_arrow
            self._total = max(1, file.metadata.num_rows)
        columns = list(schema.names)
        self.layout = layout_of(columns, layout=layout)
        positions = column_positions(columns, layout=self.layout, mapping=mapping)
        self.unused_columns = unused_columns(columns, positions)
        self._columns = {field: columns[position] for field, position in positions.items()}
        for field, column in self._columns.items():
            _require_type(field, column, schema.field(column).type)
        self.amounts_are_numbers = not _is_text(_values_of(schema.field(self._columns["amount"]).type))

    def batches(self, *, rows: int) -> Iterator[RawBatch]:
        first = 1
        with self._opened() as file:
            try:
                for batch in file.iter_batches(rows, columns=list(self._columns.values())):
                    cells = [
                        _texts(batch.column(self._columns[field])) if field in self._columns else [None] * len(batch)
                        for field in FIELDS
                    ]
                    last = first + len(batch)
                    yield RawBatch(
                        lines=list(range(first, last)),
                        rows=list(zip(*cells, strict=True)),
                        unreadable=[],
                        fraction=min(1.0, (last - 1) / self._total),
                    )
                    first = last
            except (pa.ArrowException, OSError) as error:
                raise FileError(f"{self.path}: damaged after row {first - 1:,}: {error}") from error

    def _opened(self) -> pq.ParquetFile:
        try:
            # INT96 times of Spark and Impala would overflow as nanoseconds, without a word, beyond 2262.
            return pq.ParquetFile(self.path, coerce_int96_timestamp_unit="us")
        except pa.ArrowException as error:
            raise FileError(f"{self.path}: not a Parquet file that can be read: {error}") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _values_of(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _require_type(field: str, column: str, kind: pa.DataType) -> None:
    kind = _values_of(kind)
    number = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_float32(kind)
    number = number or pa.types.is_float64(kind)
    fits = pa.types.is_null(kind) or _is_text(kind)
    match field:
        case "occurred_at":
            fits, wanted = fits or pa.types.is_timestamp(kind) or pa.types.is_date(kind), "a timestamp, a date or text"
        case "is_fraud":
            fits, wanted = fits or number or pa.types.is_boolean(kind), "boolean, 0 and 1, or text"
        case "currency":
            wanted = "text"
        case _:
            fits, wanted = fits or number, "a number or text"
    if not fits:
        raise LayoutError(
            f"column {column!r} is of type {kind}; {field} needs {wanted}. Choose with --map {field}=COLUMN"
        )


def _texts(array: Any) -> list[str | None]:
    """Every value as text, nothing as None; bytes that are no UTF-8 come through as surrogates."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit))  # the same moment, written in UTC
    elif pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), None, array)  # what pandas writes for "nothing"
    if _is_text(kind):
        # Not as a string: pyarrow decodes strictly, and one bad byte would take the whole batch.
        raw = array.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    texts: list[str | None] = array.cast(pa.string()).to_pylist()
    return texts
