"""`manage.py invalidate customer C000001`: its copies are gone from the cache, whatever they were."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser

from features.definitions import GROUPS_OF_ENTITY
from features.vectors import groups_held_in_l2, invalidate_entity
from mlserve.arguments import whole_number
from mlserve.cache.wiring import engine
from predictions.messages import EntityId

_ID_RULE = "1 to 64 of the characters A-Z a-z 0-9 . _ : -, not dots alone"
_WAIT_S = 5
_MOST_S = 3_600
_PAUSE_S = 0.05


class Command(BaseCommand):
    help = (
        "Drops an entity's copies from the cache, as DELETE /v1/features does; Postgres keeps its values. Exit code 1 "
        "if the cache could not be told."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("entity", choices=sorted(GROUPS_OF_ENTITY))
        parser.add_argument("id")
        parser.add_argument(
            "--group", action="append", metavar="GROUP", help="only this feature group; may be repeated (default: all)"
        )
        parser.add_argument(
            "--wait",
            type=whole_number(0, _MOST_S),
            default=_WAIT_S,
            metavar="S",
            help=f"seconds to go on trying while the cache does not answer (default: {_WAIT_S})",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        entity, entity_id, groups = options["entity"], options["id"], options["group"]
        _refuse_unknown(entity, entity_id, groups or ())
        held = groups_held_in_l2(entity=entity, entity_id=entity_id, groups=groups)
        answer = invalidate_entity(entity=entity, entity_id=entity_id, groups=groups)
        answer |= {"held": held, "delivered": answer["delivered"] or _delivered_within(options["wait"])}
        if options["json"]:
            self.stdout.write(json.dumps(answer))
        elif answer["delivered"]:
            self.stdout.write(f"dropped: {_shown(held)}")
        if not answer["delivered"]:
            raise CommandError(
                f"not delivered: the cache did not answer within {options['wait']} s. Nothing is pending, since this "
                "process ends: run it again once the cache answers"
            )


def _refuse_unknown(entity: str, entity_id: str, groups: Sequence[str]) -> None:
    try:
        msgspec.convert(entity_id, EntityId)
    except msgspec.ValidationError as error:
        raise CommandError(f"id {entity_id[:80]!r}: must be {_ID_RULE}", returncode=2) from error
    known = [group.name for group in GROUPS_OF_ENTITY[entity]]
    unknown = [group for group in groups if group not in known]
    if unknown:
        raise CommandError(
            f"--group {unknown[0][:80]!r} is no group of a {entity}; there are {', '.join(known)}", returncode=2
        )


def _delivered_within(wait_s: float) -> bool:
    """The engine's own prober delivers what is pending, as soon as the cache answers."""
    cache = engine()
    deadline = cache.clock.monotonic() + wait_s
    while len(cache.pending) and cache.clock.monotonic() < deadline:
        cache.clock.sleep(_PAUSE_S)
    return not len(cache.pending)


def _shown(held: list[str] | None) -> str:
    if held is None:
        return "whatever there was; the cache did not answer at first"
    return ", ".join(held) or "nothing; the cache held no copy"
