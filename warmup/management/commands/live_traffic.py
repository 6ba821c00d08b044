"""`manage.py live_traffic`: plausible transactions, a few a second, through the real API."""

import json
import signal
import threading
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection
from django.utils import timezone

from features.transactions.population import population_from_ledger
from features.transactions.simulate import LiveTraffic
from mlserve.errors import MlserveError
from warmup.live_traffic import drive
from warmup.service_client import ServiceClient


class Command(BaseCommand):
    help = "Sends transactions of the ledger's customers to the service until it is stopped. Key: MLSERVE_API_KEY."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service")
        parser.add_argument("--rate", type=float, default=5.0, help="transactions a second (default: 5)")
        parser.add_argument("--most", type=int, metavar="N", help="stop after N answers (default: never)")
        parser.add_argument("--seed", type=int, default=1, help="two that run side by side need different ones")
        parser.add_argument("--json", action="store_true", help="in the end, print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 0 < options["rate"] <= 1000:
            raise CommandError(f"--rate {options['rate']:g}: must lie between 0 and 1,000 a second", returncode=2)
        if options["seed"] < 0:
            raise CommandError(f"--seed {options['seed']}: must not be negative", returncode=2)
        if not settings.API_KEY:
            raise CommandError("no API key: set MLSERVE_API_KEY to one with the scope `score`", returncode=2)
        try:
            client = ServiceClient(options["url"], api_key=settings.API_KEY)
        except ValueError as error:
            raise CommandError(f"--url: {error}", returncode=2) from error
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        try:
            traffic = LiveTraffic(population_from_ledger(connection), options["seed"])
            connection.close()
            tally = drive(
                client=client,
                traffic=traffic,
                per_second=options["rate"],
                stopped=stopped,
                now=timezone.now,
                most=options["most"],
            )
        except (ValueError, DatabaseError) as error:
            raise CommandError(str(error)) from error
        except MlserveError as error:
            raise CommandError(error.detail) from error
        finally:
            client.close()
        if options["json"]:
            self.stdout.write(json.dumps(msgspec.to_builtins(tally)))
        else:
            self.stdout.write(f"{tally.scored:,} scored, {tally.refused:,} refused, {tally.unreachable:,} unreachable")
