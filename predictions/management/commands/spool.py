"""Decisions that wait or were refused: `manage.py spool list`, `deliver`, `retry`, `drop`."""

import getpass
import json
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from mlserve.postgres.failures import failure_of
from predictions import delivery, spool
from predictions.spooled.drain import Fate
from predictions.spooled.refused import Refused
from predictions.spooled.survey import Survey, survey

SHOWN = 20
"""Refused decisions that `list` prints; all of them are in `--json`."""
AT_ONCE = 2_000
"""Refused decisions that `retry` tries before it writes down what became of them."""


class Command(BaseCommand):
    help = (
        "Decisions that PostgreSQL has not taken: lists those that wait and those that it refused, with the reason; "
        "delivers the former, retries the latter or drops them. `list` and `drop` need no server."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["list", "deliver", "retry", "drop"])
        parser.add_argument(
            "transaction_id", nargs="*", help="with `retry` (default: all) and `drop`; or the key that `list` shows"
        )
        parser.add_argument("--reason", help="with `drop`: kept in the audit file")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        action, names, reason = options["action"], options["transaction_id"], (options["reason"] or "").strip()
        _refuse_wrong_usage(action, names, reason=reason, has_reason=options["reason"] is not None)
        try:
            if action == "list":
                self._list(as_json=options["json"])
            elif action == "deliver":
                self._deliver(as_json=options["json"])
            elif action == "retry":
                self._retry(names, as_json=options["json"])
            else:
                self._drop(names, reason=reason, as_json=options["json"])
        except (DatabaseError, InterfaceError) as error:
            detail = " ".join(str(error).split())
            raise CommandError(f"PostgreSQL does not take them ({failure_of(error)}): {detail}. They stay.") from error
        except OSError as error:
            raise CommandError(f"the spool in {spool.folder()} cannot be read or written: {error}") from error

    def _list(self, *, as_json: bool) -> None:
        found, refused = survey(), delivery.refused_decisions()
        if as_json:
            records = [_as_dict(record) for record in refused.records()]
            self.stdout.write(json.dumps({**_waiting(found), "refused": records}))
            return
        if not found.decisions and not found.refused:
            self.stdout.write(f"nothing waits in {spool.folder()}, nothing was refused")
        for file in found.files:
            held = f", {file.held:,} of them held up alone" if file.held else ""
            held += f", {file.no_room:,} refused without room in the refused files" if file.no_room else ""
            since = _shown(datetime.fromtimestamp(file.oldest_at, UTC))
            self.stdout.write(f"waiting  {file.decisions:>7,} decisions since {since} in {file.name}{held}")
        for record in islice(refused.records(), SHOWN):
            code = f" [{record.sqlstate}]" if record.sqlstate else ""
            self.stdout.write(f"refused  {_name(record)}  {_shown(record.at)}{code}  {record.reason}")
        if found.refused > SHOWN:
            self.stdout.write(f"refused  ... and {found.refused - SHOWN:,} more: --json shows all")
        for name in found.unreadable:
            self.stderr.write(f"cannot be read: {name}")

    def _deliver(self, *, as_json: bool) -> None:
        delivered = 0
        while settled := delivery.deliver_now():
            delivered += settled
        found = survey()
        if as_json:
            self.stdout.write(json.dumps({"left_the_spool": delivered, **_waiting(found)}))
        else:
            self.stdout.write(
                f"{delivered:,} left the spool, {found.decisions:,} wait"
                + (" in files of processes that are alive and deliver them, or are held up" if found.decisions else "")
                + f", {found.refused:,} are refused"
            )

    def _retry(self, names: Sequence[str], *, as_json: bool) -> None:
        chosen = self._chosen(names)
        stored, held = 0, 0
        for start in range(0, len(chosen), AT_ONCE):
            done = delivery.retry(chosen[start : start + AT_ONCE])
            stored += done.fates.count(Fate.SETTLED)
            held += done.fates.count(Fate.HELD)
            if done.error is not None:
                raise done.error
        left = len(chosen) - stored
        if as_json:
            self.stdout.write(json.dumps({"stored": stored, "refused": left - held, "held": held}))
        else:
            self.stdout.write(f"{stored:,} stored, {left - held:,} refused again, {held:,} held up by a lock")
        if left:
            raise CommandError(f"{left:,} of {len(chosen):,} stay refused: `manage.py spool list` says why")

    def _drop(self, names: Sequence[str], *, reason: str, as_json: bool) -> None:
        chosen = self._chosen(names)
        delivery.refused_decisions().drop(
            {record.key for record in chosen}, at=timezone.now(), who=_who(), reason=reason
        )
        if as_json:
            self.stdout.write(json.dumps({"dropped": [_as_dict(record) for record in chosen]}))
        else:
            self.stdout.write(f"{len(chosen):,} dropped; they are kept in {spool.folder() / 'dropped.jsonl'}")

    def _chosen(self, names: Sequence[str]) -> list[Refused]:
        records = list(delivery.refused_decisions().records())
        if not names:
            return records
        known = {record.key for record in records} | {record.transaction_id for record in records}
        if missing := [name for name in names if name not in known]:
            raise CommandError(
                f"not among the refused: {', '.join(missing)}. `manage.py spool list` shows those that are; "
                "what waits is delivered by itself"
            )
        wanted = set(names)
        return [record for record in records if record.key in wanted or record.transaction_id in wanted]


def _refuse_wrong_usage(action: str, names: Sequence[str], *, reason: str, has_reason: bool) -> None:
    if action in ("list", "deliver") and names:
        raise CommandError(f"`{action}` takes no transaction id", returncode=2)
    if action == "drop" and not names:
        raise CommandError("`drop` takes the transaction ids that shall be dropped", returncode=2)
    if action == "drop" and not reason:
        raise CommandError('`drop` needs --reason "...": a client was told that this decision stands', returncode=2)
    if action != "drop" and has_reason:
        raise CommandError("only `drop` takes --reason", returncode=2)


def _waiting(found: Survey) -> dict[str, Any]:
    return {
        "folder": str(spool.folder()),
        "waiting": {
            "decisions": found.decisions,
            "bytes": found.bytes,
            "oldest_at": None if found.oldest_at is None else _iso(datetime.fromtimestamp(found.oldest_at, UTC)),
            "files": [msgspec.to_builtins(file) for file in found.files],
            "unreadable": found.unreadable,
        },
    }


def _as_dict(record: Refused) -> dict[str, Any]:
    return {
        "transaction_id": record.transaction_id,
        "key": record.key,
        "at": None if record.at is None else _iso(record.at),
        "sqlstate": record.sqlstate,
        "reason": record.reason,
    }


def _name(record: Refused) -> str:
    return record.transaction_id if record.transaction_id and record.transaction_id.isprintable() else record.key


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _shown(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "at an unknown time"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
