"""`manage.py score`: one transaction through the real scoring path, without HTTP."""

import json
import math
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from mlserve.cache.wiring import engine
from mlserve.errors import ErrorCode, FieldError, MlserveError
from mlserve.observability.request_id import new_request_id
from predictions.api.decoding import decode_score_options, decode_score_request
from predictions.scoring import score_transaction

CLIENT = "manage.py score"
_USAGE = (ErrorCode.MALFORMED_REQUEST, ErrorCode.INVALID_PARAMETER, ErrorCode.INVALID_FIELDS)


class Command(BaseCommand):
    help = (
        "Scores a transaction as the API does: recorded and remembered unless it is a dry run. `-` reads the "
        "transaction as the API's JSON from stdin."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("document", nargs="?", choices=["-"], help="read JSON from stdin instead of the options")
        parser.add_argument("--customer", help="customer id")
        parser.add_argument("--merchant", help="merchant id")
        parser.add_argument("--amount", help="in units of the currency, at most four decimals")
        parser.add_argument("--currency", default="EUR", help="(default: EUR)")
        parser.add_argument("--at", metavar="TIME", help="when it occurred, ISO 8601 with zone (default: now)")
        parser.add_argument("--id", help="transaction id (default: a new one)")
        parser.add_argument("--include", default="", help="of features,trace,reasons, separated by commas")
        parser.add_argument("--dry-run", action="store_true", help="store nothing, fill nothing, count nothing")
        parser.add_argument("--json", action="store_true", help="print the API's answer")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        body = sys.stdin.buffer.read() if options["document"] else _document(options, now.isoformat())
        try:
            scored = score_transaction(
                request=decode_score_request(body, now=now),
                options=decode_score_options(_query(options)),
                client=CLIENT,
                now=now.timestamp(),
            )
        except MlserveError as error:
            raise CommandError(
                _explained(error), returncode=2 if error.errors or error.code in _USAGE else 1
            ) from error
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL does not answer or refuses: {error}") from error
        engine().filler.flush()
        engine().publish()
        answer = scored.body.decode()
        self.stdout.write(answer if options["json"] else _text(json.loads(answer), replayed=scored.replayed))


def _document(options: dict[str, Any], now: str) -> bytes:
    missing = [f"--{name}" for name in ("customer", "merchant", "amount") if options[name] is None]
    if missing:
        raise CommandError(f"needed: {', '.join(missing)}; or `-` and JSON on stdin", returncode=2)
    try:
        amount = float(options["amount"])
    except ValueError:
        amount = math.nan
    if not math.isfinite(amount):
        raise CommandError(f"--amount {options['amount']!r} is no number", returncode=2)
    document = {
        "transaction_id": options["id"] or f"cli-{new_request_id()}",
        "occurred_at": options["at"] or now,
        "customer_id": options["customer"],
        "merchant_id": options["merchant"],
        "amount": amount,
        "currency": options["currency"],
    }
    return json.dumps(document).encode()


def _query(options: dict[str, Any]) -> str:
    include = [f"include={options['include']}"] if options["include"] else []
    return "&".join([*include, *(["dry_run=true"] if options["dry_run"] else [])])


def _explained(error: MlserveError) -> str:
    """The wrong places if any is named: the sentence before them only counts them, or says the same."""
    return "; ".join(f"{_place(one)}: {one.detail}" for one in error.errors) or error.detail


def _place(error: FieldError) -> str:
    return (error.pointer or "").lstrip("/") or error.parameter or "document"


def _text(answer: dict[str, Any], *, replayed: bool) -> str:
    lines = [
        f"{answer['decision']}   score {answer['score']:.6f} (probability of fraud), risk {answer['risk_level']}"
        + (", decided before" if replayed else ""),
        f"transaction  {answer['transaction_id']}",
        f"model        {answer['model']['name']} {answer['model']['version']}, policy {answer['policy_version']}",
        f"degraded     {', '.join(answer['degraded_reasons']) or 'no'}",
        f"cold start   {'yes' if answer.get('cold_start') else 'no'}",
    ]
    lines += [f"reason       {reason['text']} ({reason['effect']:+.4f})" for reason in answer["reasons"]]
    lines += [_tier(one) for one in answer.get("trace") or ()]
    lines += [_feature(one) for one in answer.get("features") or ()]
    return "\n".join(lines)


def _tier(tier: dict[str, Any]) -> str:
    return f"{tier['tier']:<12} {tier['hit']} of {tier['asked']} keys, {tier['ms']:.2f} ms"


def _feature(one: dict[str, Any]) -> str:
    age = "" if one["age_s"] is None else f"{one['age_s']:.1f} s old, at most {one['max_age_s']:.0f} s"
    return f"{one['name']:<28} {one['value']:>14.4f}  {one['tier']:<8} {age}{' STALE' if one['stale'] else ''}"
