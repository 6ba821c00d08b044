"""`manage.py feature customer C000001`: what each tier holds of an entity, without changing anything."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from features.definitions import GROUPS_OF_ENTITY
from features.vectors import peek_entity
from predictions.messages import EntityId

_VALUES_SHOWN = 12
_ID_RULE = "1 to 64 of the characters A-Z a-z 0-9 . _ : -, not dots alone"


class Command(BaseCommand):
    help = "Shows every copy of an entity's feature groups: version, age and limit in L2 and in Postgres. Only peeks."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("entity", choices=sorted(GROUPS_OF_ENTITY))
        parser.add_argument("id")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        entity, entity_id = options["entity"], options["id"]
        try:
            msgspec.convert(entity_id, EntityId)
        except msgspec.ValidationError as error:
            raise CommandError(f"id {entity_id[:80]!r}: must be {_ID_RULE}", returncode=2) from error
        try:
            groups = peek_entity(entity=entity, entity_id=entity_id, now=timezone.now().timestamp())
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL does not answer or refuses: {error}") from error
        if options["json"]:
            self.stdout.write(json.dumps({"entity": entity, "id": entity_id, "groups": groups}))
            return
        for group in groups:
            self.stdout.write(f"{group['group']:<20} {_values(group['values'])}")
            for copy in group["copies"]:
                as_of = datetime.fromtimestamp(copy["as_of"], UTC)
                what = "known to be unknown" if copy["negative"] else f"version {copy['version']}"
                stale = "  STALE" if copy["stale"] else ""
                self.stdout.write(
                    f"  {copy['tier']:<4} {what}, as of {as_of:%Y-%m-%d %H:%M:%S} UTC, "
                    f"{copy['age_s']:.1f} s old, at most {copy['max_age_s']:.0f} s{stale}"
                )


def _values(values: dict[str, float] | list[float] | None) -> str:
    if values is None:
        return "nothing known"
    if isinstance(values, dict):
        return ", ".join(f"{name} {value:g}" for name, value in values.items())
    shown = ", ".join(f"{value:g}" for value in values[:_VALUES_SHOWN])
    return f"{shown}, ... ({len(values)} numbers)" if len(values) > _VALUES_SHOWN else shown
