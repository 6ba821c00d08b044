"""Which reader a file needs, decided by its first bytes."""

from collections.abc import Mapping
from pathlib import Path

from features.transactions.csv_rows import CsvTransactions
from features.transactions.parquet_rows import ParquetTransactions
from features.transactions.rows import FileError, TransactionFile

_PARQUET = b"PAR1"
_FOREIGN = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; save it as CSV (UTF-8)",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}


class PathError(ValueError):
    """There is no such file to read. The message names it."""


def open_transactions(
    path: Path, *, layout: str | None, mapping: Mapping[str, str], delimiter: str | None = None
) -> TransactionFile:
    """Raises PathError, LayoutError (both are for the caller to mend) or FileError (the file's contents are wrong)."""
    try:
        if path.is_dir():
            raise PathError(f"{path} is a directory; name a CSV or Parquet file")
        if path.exists() and not path.is_file():
            raise PathError(f"{path} is not a regular file; it must be possible to read it twice")
        with path.open("rb") as file:
            start = file.read(4)
        if start == _PARQUET:
            return ParquetTransactions(path, layout=layout, mapping=mapping)
        if path.suffix.lower() in (".parquet", ".pq"):
            raise FileError(f"{path}: not a Parquet file (it does not begin with PAR1)")
        for magic, what in _FOREIGN.items():
            if start.startswith(magic):
                raise FileError(f"{path} {what}")
        return CsvTransactions(path, layout=layout, mapping=mapping, delimiter=delimiter)
    except FileNotFoundError as error:
        raise PathError(f"{path}: no such file") from error
    except PermissionError as error:
        raise PathError(f"{path}: no permission to read it") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) or "null byte" in str(error):
            raise PathError(f"{path}: {error}") from error
        raise
