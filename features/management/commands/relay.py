"""`manage.py relay`: keeps L2 told of what Postgres has committed."""

import json
import random
import signal
import threading
from typing import Any

import msgspec
import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from features.existence import distrust
from features.journal import Journal
from features.relay import Relay, Unjournaled
from mlserve.cache.breaker import Breaker
from mlserve.cache.clock import SystemClock
from mlserve.cache.seal import make_seal
from mlserve.cache.tiers.batches import Batches
from mlserve.cache.tiers.cluster import make_wire

_MOST_ATTEMPTS = 100
_STOP_S = 0.7
"""For the tick that is under way. One that takes longer is left as it is: it may end at any moment."""


class Command(BaseCommand):
    help = (
        "Invalidates in L2 whatever Postgres commits, and moves L2's watermarks on, until it is stopped. Several may "
        "run at once. Waits for servers that are away."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tick-ms", type=int, default=50, metavar="MS", help="from look to look (default: 50)")
        parser.add_argument(
            "--once", action="store_true", help="only what was committed until now; fails without servers"
        )
        parser.add_argument("--json", action="store_true", help="in the end, print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 1 <= options["tick_ms"] <= 10_000:
            raise CommandError(f"--tick-ms {options['tick_ms']}: must lie between 1 and 10,000", returncode=2)
        relay = _make_relay()
        if options["once"]:
            _run_once(relay)
        else:
            _run(relay, tick_s=options["tick_ms"] / 1000)
        lag_s = relay.lag_s
        if options["json"]:
            tally = msgspec.to_builtins(relay.tally)
            self.stdout.write(json.dumps({**tally, "lag_s": None if lag_s is None else round(lag_s, 6)}))
        else:
            tally = relay.tally
            self.stdout.write(
                f"{tally.steps:,} steps, {tally.keys:,} changed keys, {tally.tombstones:,} tombstones, "
                f"{tally.races:,} races lost, {tally.epochs_raised:,} epochs raised"
            )


def _make_relay() -> Relay:
    clock = SystemClock()
    wire = make_wire("l2", new_breaker=lambda name: Breaker(name, clock, random_source=random.Random()), clock=clock)
    batches = Batches(wire, seal=make_seal(settings.CACHE_MAC_KEY))
    partitions = settings.CACHE_PARTITIONS
    return Relay(journal=Journal(), batches=batches, partitions=partitions, clock=clock, before_anew=distrust)


def _run_once(relay: Relay) -> None:
    clock = SystemClock()
    missing = set(range(settings.CACHE_PARTITIONS))
    try:
        for _ in range(_MOST_ATTEMPTS):
            missing -= relay.tick()
            if not missing:
                return
            clock.sleep(0.02)
    except (psycopg.Error, Unjournaled) as error:
        raise CommandError(f"Postgres does not take part: {error}") from error
    raise CommandError(f"the cache does not take part: no step of partitions {sorted(missing)}")


def _run(relay: Relay, *, tick_s: float) -> None:
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    # In a thread, because whoever waits for a server that hangs does not hear a signal.
    thread = threading.Thread(target=relay.run, args=(stopped,), kwargs={"tick_s": tick_s}, name="relay", daemon=True)
    thread.start()
    stopped.wait()
    thread.join(_STOP_S)
