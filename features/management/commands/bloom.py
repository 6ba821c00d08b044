import json
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from features import existence
from mlserve.cache.bloom import UnusableFilter
from mlserve.cache.bloom_generation import Header
from mlserve.cache.bloom_redis import StoreUnreachable
from mlserve.cache.clock import SystemClock


class Command(BaseCommand):
    help = (
        "Builds the filters of existing customers and merchants, or shows those that are in use. Every process takes "
        "new ones over within a second."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["build", "status"], help="build anew; show what is saved")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["action"] == "build":
                self._build(as_json=options["json"])
            else:
                self._status(as_json=options["json"])
        except existence.BuildFailed as error:
            raise CommandError(str(error)) from error
        except UnusableFilter as error:
            raise CommandError(f"what is saved is no filter of ours, so every id may exist: {error}") from error
        except StoreUnreachable as error:
            raise CommandError(f"Redis did not take part: {error}") from error
        except DatabaseError as error:
            raise CommandError(f"Postgres did not say which ids exist: {error}") from error

    def _build(self, *, as_json: bool) -> None:
        built = existence.build(clock=SystemClock())
        if as_json:
            answer = {
                "generation": built.generation,
                "ids": built.counts,
                "bytes": built.bytes,
                "waited_s": round(built.waited_s, 3),
                "seconds": round(built.seconds, 3),
            }
            self.stdout.write(json.dumps(answer))
            return
        for kind, count in built.counts.items():
            self.stdout.write(f"{kind:10} {count:>11,} ids {built.bytes[kind]:>13,} bytes")
        self.stdout.write(f"built in {built.seconds:.1f} s, {built.waited_s:.1f} s of it for writers to end")

    def _status(self, *, as_json: bool) -> None:
        header = existence.newest_generation()
        if as_json:
            self.stdout.write(json.dumps({"filters": _as_json(header) if header else None}))
        elif header is None:
            self.stdout.write("no filters: every id may exist; `manage.py bloom build` makes them")
        else:
            for record in header.filters:
                self.stdout.write(
                    f"{record.kind:10} {record.count:>11,} ids, room for {record.capacity:,}, {record.bytes:,} bytes"
                )
            self.stdout.write(f"generation {header.name}, built {time.time() - header.built_at:,.0f} s ago")


def _as_json(header: Header) -> dict[str, Any]:
    return {
        "generation": header.name,
        "built_at": header.built_at,
        "age_s": round(time.time() - header.built_at, 3),
        "kinds": {
            record.kind: {"ids": record.count, "capacity": record.capacity, "bytes": record.bytes}
            for record in header.filters
        },
    }
