"""`manage.py api_key`: makes, lists, limits and revokes API keys."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, InterfaceError, OperationalError

from mlserve.api.keys import KeyRefused, issue_key, revoke_key, set_limit
from mlserve.api.limit import MOST_PER_S, limit_in_words
from mlserve.api.models import ApiKey

_OPTIONS = {"name": "--name", "scopes": "--scopes", "key": "--key", "rate_per_s": "--rate", "burst": "--burst"}


class Command(BaseCommand):
    """Exit codes: 0 done, 1 failed, 2 usage."""

    help = "Makes, lists, limits and revokes API keys. A new key is shown once and never again."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="create|list|limit|revoke")
        create = actions.add_parser("create", help="make a key")
        create.add_argument("--name", required=True, help="who uses it, at most 100 characters")
        create.add_argument("--scopes", default="score", help=f"comma-separated: {', '.join(ApiKey.Scope.values)}")
        create.add_argument("--key", help="set this key (16 characters or more) instead of a random one")
        limit = actions.add_parser(
            "limit",
            help="give a key another limit; every process obeys within a second",
            description="Replaces both numbers of a key's limit: if one is left out, it is as the settings say again. "
            "Every process obeys within a second.",
        )
        limit.add_argument("prefix", help="as `list` shows it")
        limit.add_argument(
            "--default", action="store_true", help="no limit of its own: as the settings say again; without numbers"
        )
        for action in (create, limit):
            action.add_argument(
                "--rate",
                type=int,
                metavar="N",
                help=f"requests a second, 0 to {MOST_PER_S:,} (default: as the settings say; 0: no limit)",
            )
            action.add_argument(
                "--burst",
                type=int,
                metavar="N",
                help=f"requests at once after a pause, 1 to {MOST_PER_S:,} (default: as many as in a second)",
            )
        listing = actions.add_parser("list", help="show all keys, without the keys themselves")
        revoke = actions.add_parser("revoke", help="end a key; every process obeys within a second")
        revoke.add_argument("prefix", help="as `list` shows it")
        for action in (create, listing, limit, revoke):
            action.add_argument("--json", action="store_true", help="one JSON document on stdout")

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action}")(**options)
        except KeyRefused as error:
            wrong = [f"{_OPTIONS.get(one.parameter or '', one.parameter)}: {one.detail}" for one in error.errors]
            self._fail("; ".join(wrong) or str(error), code=2 if wrong else 1)
        except (OperationalError, InterfaceError) as error:
            self._fail(f"the database does not answer: {error}", code=1)
        except DatabaseError as error:
            self._fail(f"PostgreSQL refuses: {error}. Is it migrated (`manage.py migrate`)?", code=1)

    def _create(
        self,
        *,
        name: str,
        scopes: str,
        key: str | None,
        rate: int | None,
        burst: int | None,
        json: bool,
        **_: Any,
    ) -> None:
        wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
        issued = issue_key(name=name, scopes=wanted, key=key, rate_per_s=rate, burst=burst)
        self._say(
            {"key": issued.key, "created": issued.created, **_described(issued.record)},
            as_json=json,
            text=f"{issued.key}\n(scopes: {', '.join(issued.record.scopes)}; shown this once, keep it safe)",
        )

    def _list(self, *, json: bool, **_: Any) -> None:
        records = list(ApiKey.objects.all())
        rows = [("prefix", "scopes", "limit", "created (UTC)", "revoked (UTC)", "name")]
        rows += [
            (
                record.prefix,
                ",".join(record.scopes),
                _limit(record),
                _minute(record.created_at),
                _minute(record.revoked_at),
                record.name,
            )
            for record in records
        ]
        text = "\n".join(_aligned(rows)) if records else "no key yet: `manage.py api_key create --name NAME` makes one"
        self._say({"keys": [_described(record) for record in records]}, as_json=json, text=text)

    def _limit(self, *, prefix: str, rate: int | None, burst: int | None, default: bool, json: bool, **_: Any) -> None:
        if default == (rate is not None or burst is not None):
            self._fail("limit needs --rate, --burst or both; or --default alone: as the settings say again", code=2)
        record = self._record(prefix)
        set_limit(record, rate_per_s=rate, burst=burst)
        self._say(_described(record), as_json=json, text=f"the limit of {record} is {_limit(record)}")

    def _record(self, prefix: str) -> ApiKey:
        record = ApiKey.objects.filter(prefix=prefix).first()
        if record is None:
            self._fail(f"no key has the prefix {prefix!r}; `manage.py api_key list` shows them all", code=1)
        return record

    def _revoke(self, *, prefix: str, json: bool, **_: Any) -> None:
        record = self._record(prefix)
        changed = revoke_key(record, now=datetime.now(UTC))
        text = f"revoked {record}" if changed else f"{record} was revoked before"
        self._say({"revoked": changed, **_described(record)}, as_json=json, text=text)

    def _say(self, document: dict[str, Any], *, as_json: bool, text: str) -> None:
        self.stdout.write(json.dumps(document, indent=2) if as_json else text)

    def _fail(self, message: str, *, code: int) -> NoReturn:
        self.stderr.write(f"api_key: {message}")
        sys.exit(code)


def _described(record: ApiKey) -> dict[str, Any]:
    return {
        "prefix": record.prefix,
        "name": record.name,
        "scopes": record.scopes,
        "rate_per_s": record.rate_per_s,
        "burst": record.burst,
        "created_at": record.created_at.isoformat(),
        "revoked_at": record.revoked_at and record.revoked_at.isoformat(),
    }


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The last column is as long as it likes."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)][:-1]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]


def _limit(record: ApiKey) -> str:
    return limit_in_words(rate_per_s=record.rate_per_s, burst=record.burst)


def _minute(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "-"
