import json
import os
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from features.definitions import ALL_FEATURES, BASELINE_FEATURES
from features.point_in_time import TrainingSet, training_vectors
from features.progress import shown

_FEATURES = {"baseline": BASELINE_FEATURES, "all": ALL_FEATURES}


class Command(BaseCommand):
    help = (
        "Writes the vectors that training sees to a Parquet file: transaction_id, the features, is_fraud (null where "
        "nobody has said). Rows by time, equal seconds by transaction id."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--from", dest="start", metavar="DATE", type=_day, required=True, help="first day, UTC")
        parser.add_argument("--to", dest="end", metavar="DATE", type=_day, required=True, help="last day, included")
        parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="replaced if it exists")
        parser.add_argument("--features", choices=list(_FEATURES), default="all", help="default: all")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        start, end, out = options["start"], options["end"], options["out"]
        if end < start:
            raise CommandError(f"--to {end} is before --from {start}", returncode=2)
        if out.is_dir() or not out.parent.is_dir():
            reason = "is a folder" if out.is_dir() else f"cannot be written: there is no folder {out.parent}"
            raise CommandError(f"--out {out} {reason}; name a file", returncode=2)
        begun = time.perf_counter()
        try:
            with shown() as progress:
                vectors = training_vectors(start, end, _FEATURES[options["features"]], progress=progress)
                progress("write the file", 0.0)
                _write(vectors, out)
        except (DatabaseError, OSError) as error:
            raise CommandError(f"nothing was written to {out}: {error}") from error
        seconds = time.perf_counter() - begun
        if options["json"]:
            answer = {
                "file": str(out),
                "rows": len(vectors),
                "features": list(vectors.names),
                "from": str(start),
                "to": str(end),
                "seconds": round(seconds, 3),
            }
            self.stdout.write(json.dumps(answer))
        else:
            self.stdout.write(f"{len(vectors):,} rows of {len(vectors.names)} features in {seconds:.1f} s: {out}")


def _day(text: str) -> date:
    return date.fromisoformat(text)


_day.__name__ = "date"  # argparse names the type in its message


def _write(vectors: TrainingSet, out: Path) -> None:
    """Whole or not at all: a reader never finds half a file under this name."""
    table = pa.table(
        {
            "transaction_id": pa.array(vectors.transaction_ids, pa.string()),
            **{name: np.ascontiguousarray(column) for name, column in zip(vectors.names, vectors.X.T, strict=True)},
            "is_fraud": pa.array(vectors.labels == 1, pa.bool_(), mask=vectors.labels < 0),
        }
    )
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
