"""`manage.py import_transactions FILE`: a CSV or Parquet file of transactions into the ledger."""

import json
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection
from django.utils import timezone

from features.transactions.follow import caught_up_with_ledger, in_words
from features.transactions.import_file import CHUNK_ROWS, ImportReport, import_file, weeks_to_now
from features.transactions.layouts import LAYOUTS, LayoutError, parse_mapping
from features.transactions.number_style import PLAIN, SEPARATORS, NumberStyle, StyleUnclear, style_of
from features.transactions.progress import progress
from features.transactions.readers import PathError, open_transactions
from features.transactions.rejects import RejectsFile
from features.transactions.rows import FileError, TransactionFile
from features.transactions.validation import as_read, check_rows
from mlserve.null_words import NULL_WORDS

FAILED, USAGE = 1, 2
SHOWN_ROWS = 10
_HOW_TO_SAY = (
    "Say which it is with --decimal comma or point and --thousands (point, comma, space, apostrophe or none); "
    "--dry-run with them shows what comes of it"
)
MAX_REJECTED_PERCENT = 1.0
"""Of a file's rows. More is a wrong column or a wrong format, seldom bad rows."""


class Command(BaseCommand):
    help = (
        "Load transactions from a CSV or Parquet file into the ledger. Safe to repeat: every transaction id is loaded "
        "once, and an interrupted import is finished by running it again. Bad rows go to the rejects file."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE")
        parser.add_argument(
            "--map",
            action="append",
            default=[],
            metavar="FIELD=COLUMN",
            help="which column holds a field; may be repeated and goes before the layout; `currency=`: none does",
        )
        parser.add_argument(
            "--layout", choices=sorted(LAYOUTS), help="known column names (default: recognised by the columns)"
        )
        parser.add_argument("--delimiter", help="of a CSV file, one character or 'tab' (default: found in the header)")
        parser.add_argument(
            "--rejects",
            type=Path,
            metavar="FILE",
            help="where bad rows go (default: NAME.rejects.csv in this directory)",
        )
        parser.add_argument(
            "--shift-to-now",
            action="store_true",
            help="move all times by whole weeks so that the newest lies in the last 7 days",
        )
        parser.add_argument(
            "--chunk-rows",
            type=int,
            default=CHUNK_ROWS,
            help=f"rows per commit, which is what an interruption can cost (default: {CHUNK_ROWS:,})",
        )
        parser.add_argument(
            "--null",
            action="append",
            metavar="WORD",
            help="a word for nothing; may be repeated and replaces the list (nan, none, null, -, \\N, n/a, na, ...)",
        )
        parser.add_argument(
            "--max-rejected",
            type=float,
            default=MAX_REJECTED_PERCENT,
            metavar="PERCENT",
            help=f"exit with 1 if more of the rows were rejected (default: {MAX_REJECTED_PERCENT:g})",
        )
        parser.add_argument(
            "--decimal",
            choices=["point", "comma"],
            help="mark before the decimals of amounts (default: what the whole column proves)",
        )
        parser.add_argument(
            "--thousands",
            choices=list(SEPARATORS),
            help="what stands between groups of three digits (default: what the column proves; with --decimal none)",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="load nothing; show the first ten rows as they would be read"
        )
        parser.add_argument("--strict", action="store_true", help="exit with 1 if any row was rejected")
        parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")

    def handle(self, *_: Any, **options: Any) -> None:
        chunk_rows = options["chunk_rows"]
        if not 1 <= chunk_rows <= 1_000_000:
            raise CommandError(f"--chunk-rows {chunk_rows}: from 1 to 1,000,000", returncode=USAGE)
        if not 0 <= options["max_rejected"] <= 100:
            raise CommandError(f"--max-rejected {options['max_rejected']:g}: from 0 to 100 percent", returncode=USAGE)
        null_words = (
            NULL_WORDS if options["null"] is None else frozenset(word.strip().lower() for word in options["null"])
        )
        asked_style = _asked_style(options)
        file = _opened(options)
        rejects_path = _rejects_path(options["file"], options["rejects"])
        report = ImportReport(file=str(options["file"]), layout=file.layout)
        try:
            with progress("amounts") as show:
                style = asked_style or style_of(file, rows=CHUNK_ROWS, progress=show)
            if options["dry_run"]:
                self._show_first(file, style, null_words, as_json=options["json"])
                return
            with RejectsFile(rejects_path) as rejects:
                shift = timedelta(0)
                if options["shift_to_now"]:
                    with progress("shift") as show:
                        shift = weeks_to_now(
                            connection, file, now=timezone.now(), style=style, null_words=null_words, progress=show
                        )
                with progress("import") as show:
                    import_file(
                        connection,
                        file,
                        rejects,
                        report=report,
                        shift=shift,
                        null_words=null_words,
                        style=style,
                        chunk_rows=chunk_rows,
                        progress=show,
                    )
        except KeyboardInterrupt as error:
            raise CommandError(f"interrupted; {_committed(report)}", returncode=FAILED) from error
        except StyleUnclear as error:
            raise CommandError(f"{error}; nothing was loaded. {_HOW_TO_SAY}", returncode=USAGE) from error
        except (FileError, DatabaseError, OSError) as error:
            raise CommandError(f"{error}; {_committed(report)}", returncode=FAILED) from error
        caught_up = caught_up_with_ledger(self.stderr.write, now=timezone.now())
        self._show(report, caught_up, as_json=options["json"])
        if report.early:
            self.stderr.write(
                f"warning: {report.early:,} rows lie before 1990, the first at {report.first}; is occurred_at the "
                "right column?"
            )
        if report.rejected:
            first = rejects.first
            assert first is not None
            words = (
                f"{report.rejected:,} of {report.rows:,} rows rejected, see {report.rejects_file}; "
                f"the first: line {first.line}, {first.field or 'row'}: {first.reason}; "
                f"the commonest: {', '.join(report.reasons)}"
            )
            if options["strict"]:
                raise CommandError(words, returncode=FAILED)
            if report.rejected == report.rows:
                raise CommandError(f"not one row could be loaded: {words}", returncode=FAILED)
            if report.rejected * 100 > options["max_rejected"] * report.rows:
                raise CommandError(
                    f"more than {options['max_rejected']:g} % could not be loaded (--max-rejected): {words}",
                    returncode=FAILED,
                )
            self.stderr.write(f"warning: {words}")
        elif not report.rows:
            self.stderr.write(f"warning: {report.file} has a header and no rows")

    def _show_first(
        self, file: TransactionFile, style: NumberStyle, null_words: AbstractSet[str], *, as_json: bool
    ) -> None:
        batch = next(iter(file.batches(rows=SHOWN_ROWS)))
        checked = check_rows(batch, now=timezone.now(), null_words=null_words, style=style)
        rows = as_read(checked)
        if as_json:
            shown = {"amounts": str(style), "unused_columns": file.unused_columns, "rows": rows}
            rejected = [asdict(reject) for reject in checked.rejects]
            self.stdout.write(json.dumps({**shown, "rejected": rejected}))
            return
        self.stdout.write(f"amounts: {style}; layout {file.layout}; nothing was loaded")
        for row in rows:
            self.stdout.write("  ".join(f"{name}={value}" for name, value in row.items()))
        for reject in checked.rejects:
            where = f"line {reject.line}, {reject.field or 'row'}"
            self.stdout.write(f"{where}: rejected, {reject.reason}: {reject.value!r}")

    def _show(self, report: ImportReport, caught_up: dict[str, Any], *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({**asdict(report), **caught_up}))
            return
        self.stdout.write(
            f"{report.imported:,} of {report.rows:,} rows imported in {report.seconds:.1f} s "
            f"({report.rows_per_second:,} rows/s, layout {report.layout}); {report.already_known:,} already known, "
            f"{report.duplicates:,} duplicates, {report.labelled:,} labels filled in, {report.rejected:,} rejected"
        )
        if report.first:
            moved = f", moved by {report.shifted_by_s // 604_800:+,} weeks" if report.shifted_by_s else ""
            self.stdout.write(f"from {report.first} to {report.last}{moved}")
        if report.unused_columns:
            self.stdout.write(f"columns that were not used: {', '.join(report.unused_columns)}")
        if report.amounts != str(PLAIN):
            self.stdout.write(f"amounts were read with {report.amounts}")
        self.stdout.write(in_words(caught_up))


def _asked_style(options: dict[str, Any]) -> NumberStyle | None:
    """None if nothing was said."""
    if options["decimal"] is None and options["thousands"] is None:
        return None
    thousands = SEPARATORS[options["thousands"] or "none"]
    decimal = SEPARATORS[options["decimal"]] if options["decimal"] else ("," if thousands == "." else ".")
    if decimal == thousands:
        raise CommandError(f"--decimal and --thousands are both {options['decimal']}", returncode=USAGE)
    return NumberStyle(decimal, thousands)


def _opened(options: dict[str, Any]) -> TransactionFile:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(options["delimiter"], options["delimiter"])
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0 '):
        raise CommandError(f"--delimiter {delimiter!r}: one character, or 'tab'", returncode=USAGE)
    try:
        return open_transactions(
            options["file"], layout=options["layout"], mapping=parse_mapping(options["map"]), delimiter=delimiter
        )
    except (PathError, LayoutError) as error:
        raise CommandError(str(error), returncode=USAGE) from error
    except FileError as error:
        raise CommandError(str(error), returncode=FAILED) from error


def _rejects_path(file: Path, wanted: Path | None) -> Path:
    path = wanted or Path(f"{file.stem}.rejects.csv")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise CommandError(f"--rejects {path}: must be a file in a directory that exists", returncode=USAGE)
    if path.exists() and path.samefile(file):
        raise CommandError(f"--rejects {path}: that is the file to be imported", returncode=USAGE)
    return path


def _committed(report: ImportReport) -> str:
    return (
        f"committed until then: {report.imported:,} new rows out of {report.rows:,} read "
        f"({report.rejected:,} rejected); run the same command again to finish"
    )
