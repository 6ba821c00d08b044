"""Small transaction files, and what the command says of them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from django.core.management import call_command

HEADER = "transaction_id,occurred_at,customer_id,merchant_id,amount,currency,is_fraud"


def csv_file(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_bytes("\n".join([header, *rows, ""]).encode("utf-8", "surrogateescape"))
    return path


def row(number: int, *, amount: str = "10.00", label: str = "0", at: str | None = None) -> str:
    moment = at or f"2026-01-{1 + number // 1440 % 28:02d} {number // 60 % 24:02d}:{number % 60:02d}:00"
    return f"t{number},{moment},c{number % 7},m{number % 5},{amount},EUR,{label}"


def run_import(file: Path, *options: str) -> dict[str, Any]:
    """The JSON result. Rejects go beside the file, and any number may be rejected, unless the options say otherwise."""
    out = io.StringIO()
    rejects = () if "--rejects" in options else ("--rejects", f"{file}.rejects.csv")
    share = () if "--max-rejected" in options else ("--max-rejected", "100")
    call_command(
        "import_transactions", str(file), "--json", *rejects, *share, *options, stdout=out, stderr=io.StringIO()
    )
    result: dict[str, Any] = json.loads(out.getvalue())
    return result


def rejects_of(result: dict[str, Any]) -> list[dict[str, str]]:
    with Path(result["rejects_file"]).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
