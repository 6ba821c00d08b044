"""`python -m benchmarks.score_world`: fills an empty database until it can score. A child of `scores.py`.

Tells on stdout, one JSON object a line: `{"stage": ...}` as it goes, and in the end the key and who to score.
"""

import io
import sys
from datetime import UTC, datetime
from typing import Any

import django
import msgspec
from django.core.management import call_command

CUSTOMERS, MERCHANTS, DAYS = 400, 200, 45
PAIRS = 200
"""Scored by turns: enough that no customer's recent history grows much, few enough to be warm within a second."""


class ScoreWorld(msgspec.Struct, frozen=True):
    """`pairs`: customer id and merchant id, of which every feature group is known."""

    key: str
    pairs: list[tuple[str, str]]


def main() -> None:
    """In the environment's database, which must be empty."""
    django.setup()
    call_command("migrate", interactive=False, verbosity=0)
    _choose_policies()
    for command, options in (
        ("simulate_transactions", {"customers": CUSTOMERS, "merchants": MERCHANTS, "days": DAYS, "json": True}),
        ("build_features", {"json": True}),
        ("train", {"json": True}),
    ):
        _say({"stage": command})
        call_command(command, stdout=io.StringIO(), **options)
    _say(_world(now=datetime.now(UTC)))


def _choose_policies() -> None:
    """As the demo has them: with a relay, every process keeps the customers' activity in its own memory."""
    from warmup.demo.prepare import ensure_policies

    ensure_policies()


def _world(*, now: datetime) -> ScoreWorld:
    # Only importable once Django is set up, which is this module's own first step.
    from mlserve.api.keys import issue_key
    from warmup.sources import most_active

    active = most_active(limit=PAIRS, now=now)
    customers = [entity.id for entity in active if entity.kind == "customer"]
    merchants = [entity.id for entity in active if entity.kind == "merchant"]
    return ScoreWorld(
        issue_key(name="bench", scopes=["score"]).key,
        list(zip(customers, merchants, strict=False)),
    )


def _say(line: Any) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
