"""`manage.py simulate_transactions`: customers, merchants and their transactions out of a seed, into the ledger."""

import json
import math
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from features.transactions import sizes
from features.transactions.follow import caught_up_with_ledger, in_words
from features.transactions.ledger_batch import LedgerBatch
from features.transactions.load import Loaded, analyse_ledger, copy_transactions
from features.transactions.population import simulated_population
from features.transactions.progress import progress
from features.transactions.read_ahead import read_ahead
from features.transactions.simulate import generate
from mlserve.arguments import whole_number
from mlserve.event_time import wrong_moment
from mlserve.postgres.retries import retry_contention

FAILED, USAGE = 1, 2
TRANSACTIONS_PER_CUSTOMER_DAY = 1.67


class Command(BaseCommand):
    help = (
        "Simulate transactions and load them into the ledger. The same arguments give the same transactions; a later "
        "end adds only what is new. Three kinds of fraud, about 0.8 % together, all labelled."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--customers", type=sizes.customers, default=2000)
        parser.add_argument("--merchants", type=sizes.merchants, default=1000)
        parser.add_argument("--days", type=whole_number(1, sizes.MOST_DAYS), default=60)
        parser.add_argument("--end", default="now", help="ISO 8601, without a zone UTC (default: now)")
        parser.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=1)
        parser.add_argument(
            "--transactions-per-day", type=float, help="on a working day (default: 1.67 for every customer)"
        )
        parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")

    def handle(self, *_: Any, **options: Any) -> None:
        end = _end(options["end"], now=timezone.now())
        start = end - timedelta(days=options["days"])
        per_day = options["transactions_per_day"] or options["customers"] * TRANSACTIONS_PER_CUSTOMER_DAY
        if not (math.isfinite(per_day) and 0 < per_day <= 5_000_000):
            raise CommandError("--transactions-per-day must lie between 0 and 5,000,000", returncode=USAGE)
        if start.year < 1970:
            raise CommandError("--end and --days: the first day lies before 1970", returncode=USAGE)
        started = time.monotonic()
        rows = imported = already_known = frauds = 0
        seed = options["seed"]
        try:
            with progress("simulate") as show:
                population = simulated_population(
                    customers=options["customers"], merchants=options["merchants"], seed=seed
                )
                batches = generate(population, start=start, end=end, per_day=per_day, seed=seed)
                for batch in read_ahead(batches):
                    loaded = retry_contention(partial(_load, batch, seed=seed), what="simulated transactions")
                    rows += len(batch)
                    imported += loaded.imported
                    already_known += loaded.already_known
                    frauds += int((batch.labels == 1).sum())
                    now_at = batch.occurred_at[-1].astype("datetime64[s]").item().replace(tzinfo=UTC)
                    show((now_at - start) / (end - start), f"{rows:,} rows")
                if imported:
                    analyse_ledger(connection)
        except KeyboardInterrupt as error:
            words = f"interrupted; {rows:,} rows are committed, run the same command with a fixed --end to finish"
            raise CommandError(words, returncode=FAILED) from error
        except DatabaseError as error:
            raise CommandError(f"{error}; {rows:,} rows are committed", returncode=FAILED) from error
        seconds = time.monotonic() - started
        result = {
            "seed": seed,
            "customers": options["customers"],
            "merchants": options["merchants"],
            "days": options["days"],
            "start": _text(start),
            "end": _text(end),
            "rows": rows,
            "imported": imported,
            "already_known": already_known,
            "frauds": frauds,
            "fraud_share": round(frauds / rows, 6) if rows else None,
            "seconds": round(seconds, 3),
            "rows_per_second": round(rows / seconds),
            **(caught_up := caught_up_with_ledger(self.stderr.write, now=timezone.now())),
        }
        if options["json"]:
            self.stdout.write(json.dumps(result))
        else:
            self.stdout.write(
                f"{rows:,} transactions from {_text(start)} to {_text(end)} in {seconds:.1f} s "
                f"({result['rows_per_second']:,} rows/s): {imported:,} new, {already_known:,} already known, "
                f"{frauds:,} frauds ({100 * frauds / max(1, rows):.2f} %), seed {seed}"
            )
            self.stdout.write(in_words(caught_up))


def _load(batch: LedgerBatch, *, seed: int) -> Loaded:
    with transaction.atomic():
        loaded = copy_transactions(connection, batch)
        if loaded.conflicts:  # rolls back: two populations under the same ids would be no population
            transaction_id = batch.transaction_ids[loaded.conflicts[0].position]
            raise CommandError(
                f"--seed {seed} was simulated before with other customers, merchants or rate: {transaction_id} is in "
                "the ledger with other contents. Choose another --seed, or the arguments of then",
                returncode=FAILED,
            )
        return loaded


def _end(text: str, *, now: datetime) -> datetime:
    if text == "now":
        return now.replace(microsecond=0)
    try:
        end = datetime.fromisoformat(text)
        end = end.replace(tzinfo=UTC) if end.tzinfo is None else end.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise CommandError(f"--end {text!r} is not a time (ISO 8601, or now)", returncode=USAGE) from error
    if not 1971 <= end.year <= 2200:
        raise CommandError(f"--end {text!r} is outside the years 1971 to 2200", returncode=USAGE)
    wrong = wrong_moment(end, now)
    if wrong:
        raise CommandError(f"--end {text!r} is {wrong}", returncode=USAGE)
    return end.replace(microsecond=0)


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
