"""What is left after the day: gathered from PostgreSQL, the web processes, the disk and the processes themselves."""

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import psutil
from prometheus_client.parser import text_string_to_metric_families

from features.activity import ACTIVITY_MOST_KEPT
from features.definitions import ACTIVITY_KEPT_DAYS, MODEL_FEATURES
from tests.torture.bad_day.judge import ActivityRow, Copy, Difference, ProcessSample, Session, Stored
from tests.torture.bad_day.testbed import Testbed
from tests.torture.bad_day.web_client import NoAnswer, NoConnection, WebClient

BOUNDED_GROUPS: Final = ("customer_activity", "merchant_risk")
"""As `warmup.demo.prepare` has them."""
_BOUNDED_FEATURES: Final = frozenset(
    name for name, feature in MODEL_FEATURES.items() if feature.groups and set(feature.groups) <= set(BOUNDED_GROUPS)
)
_ASK_AGAIN_WITHIN_S: Final = 3.0
"""For a copy to follow a write that came while it was looked at."""
_TRACEBACK: Final = "Traceback (most recent call last)"
_RAISED: Final = re.compile(r"^[A-Za-z_][\w.]*(: .*)?$")
"""The first line after a traceback's frames, which are indented."""
_CHAINED: Final = ("During handling of the above exception", "The above exception was the direct cause")
_AWAY: Final = (NoConnection, NoAnswer)


# --- decisions ---


def spooled_lines(bed: Testbed) -> int:
    """Lines of files that wait to be delivered."""
    return sum(_lines(path) for path in bed.spool.glob("decisions-*.jsonl"))


def refused_decisions(bed: Testbed) -> list[Stored]:
    """What the spool's files of refused lines explain."""
    found = []
    for path in bed.spool.glob("refused*.jsonl"):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):
                found.append(_refused(json.loads(line)))
    return found


def _refused(line: dict[str, Any]) -> Stored:
    entry = (
        line
        if "response" in line
        else next(each for each in line.values() if isinstance(each, dict) and "response" in each)
    )
    return Stored(
        transaction_id=entry["transaction"]["id"],
        score=entry["response"]["score"],
        decision=entry["response"]["decision"],
        amount=float(entry["transaction"]["amount"]),
    )


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def label_reports(bed: Testbed) -> set[tuple[str, bool]]:
    """Of which transaction what was reported, as PostgreSQL has it."""
    with bed.database() as session:
        return set(session.execute("SELECT transaction_id, is_fraud FROM features_labelreport").fetchall())


# --- freshness ---


def activity_rows(bed: Testbed, customers: Iterable[str]) -> list[ActivityRow]:
    """What is stored of each customer, and what follows from the ledger, by a computation of its own."""
    wanted = sorted(customers)
    with bed.database() as session:
        stored = {
            row[0]: tuple(row[1])
            for row in session.execute(
                'SELECT entity_id, "values" FROM features_featurerow WHERE "group" = \'customer_activity\' '
                "AND entity_id = ANY(%s) AND deleted_at IS NULL",
                (wanted,),
            )
        }
        ledger: dict[str, list[tuple[datetime, str, float]]] = defaultdict(list)
        for customer, occurred_at, transaction_id, amount in session.execute(
            "SELECT customer_id, occurred_at, id, amount::float8 FROM features_transaction WHERE customer_id = ANY(%s)",
            (wanted,),
        ):
            ledger[customer].append((occurred_at, transaction_id, amount))
    return [
        ActivityRow(
            customer_id=customer,
            stored=_triples(stored[customer]) if customer in stored else None,
            derived=_derived(ledger[customer]),
        )
        for customer in wanted
    ]


def _triples(values: Sequence[float]) -> tuple[tuple[float, float, float], ...]:
    """The first number says from when on the list is complete."""
    return tuple(zip(values[1::3], values[2::3], values[3::3], strict=True))


def _derived(transactions: Sequence[tuple[datetime, str, float]]) -> tuple[tuple[float, float, float], ...]:
    if not transactions:
        return ()
    start = max(occurred_at for occurred_at, _, _ in transactions) - timedelta(days=ACTIVITY_KEPT_DAYS)
    recent = sorted(
        (each for each in transactions if each[0] >= start), key=lambda each: (each[0], len(each[1]), each[1])
    )
    return tuple(
        (occurred_at.timestamp(), amount, float(int(sha256(transaction_id.encode()).hexdigest()[:8], 16)))
        for occurred_at, transaction_id, amount in recent[-ACTIVITY_MOST_KEPT:]
    )


def stale_copies(bed: Testbed, entities: Sequence[tuple[str, str]]) -> list[Copy]:
    """Copies of bounded groups that would be served unflagged and are not of the source's version, asked of every web
    process; a second time after a moment, since a build may have written between the two looks."""
    suspicious = list(_odd_copies(bed, entities))
    if not suspicious:
        return []
    bed.pause(_ASK_AGAIN_WITHIN_S)
    named = {copy.entity for copy in suspicious}
    return list(_odd_copies(bed, [entity for entity in entities if "/".join(entity) in named]))


def _odd_copies(bed: Testbed, entities: Sequence[tuple[str, str]]) -> Iterator[Copy]:
    for place, web in enumerate(bed.webs):
        for kind, entity_id in entities:
            shown = web.ask("GET", f"/v1/features/{kind}/{entity_id}").json
            for group in shown["groups"]:
                if group["group"] not in BOUNDED_GROUPS:
                    continue
                copies = {copy["tier"]: copy for copy in group["copies"]}
                source = copies.pop("l3", None)
                for tier, copy in copies.items():
                    version = source["version"] if source else 0
                    if not copy["stale"] and not copy["negative"] and copy["version"] != version:
                        yield Copy(
                            where=f"{tier} of web-{place}",
                            entity=f"{kind}/{entity_id}",
                            group=group["group"],
                            version=copy["version"],
                            source_version=version,
                        )


def different_features(bed: Testbed, pairs: Sequence[tuple[str, str]], *, now: datetime) -> list[Difference]:
    """Dry runs of the same transaction, through the cache and past it, in every web process."""
    found = []
    for place, web in enumerate(bed.webs):
        for number, (customer, merchant) in enumerate(pairs):
            transaction = {
                "transaction_id": f"look-{place}-{number}",
                "occurred_at": now.astimezone(UTC).isoformat(),
                "customer_id": customer,
                "merchant_id": merchant,
                "amount": 12.5,
            }
            cached, source = _features(web, transaction), _features(web, {**transaction, "max_age_s": 0})
            for name, served in cached.items():
                if name not in _BOUNDED_FEATURES or served["stale"] or served["tier"] == "default":
                    continue
                if abs(served["value"] - source[name]["value"]) > 1e-6:
                    found.append(
                        Difference(
                            where=f"web-{place} ({served['tier']})",
                            entity=f"{customer} at {merchant}",
                            feature=name,
                            cached=served["value"],
                            source=source[name]["value"],
                        )
                    )
    return found


def _features(web: WebClient, transaction: dict[str, object]) -> dict[str, dict[str, Any]]:
    reply = web.ask("POST", "/v1/scores?dry_run=true&include=features", transaction)
    return {feature["name"]: feature for feature in reply.json["features"]}


def policies_not_in_force(bed: Testbed) -> dict[str, dict[str, object]]:
    """What scores are given under, process by process, where that is not the newest revision."""
    with bed.database() as session:
        (newest,) = session.execute("SELECT coalesce(max(id), 0) FROM features_policyrevision").fetchone() or (0,)
    found: dict[str, dict[str, object]] = {}
    customer, merchant = bed.world.pairs[0]
    for place, web in enumerate(bed.webs):
        transaction = {
            "transaction_id": f"policy-{place}",
            "occurred_at": datetime.now(UTC).isoformat(),
            "customer_id": customer,
            "merchant_id": merchant,
            "amount": 1.0,
        }
        version = web.ask("POST", "/v1/scores?dry_run=true", transaction).json["policy_version"]
        if version != newest:
            found[f"web-{place}"] = {"policy_version": version, "newest": newest}
    return found


# --- metrics ---


def metrics(bed: Testbed) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """All of the host's processes, as the first web process that answers adds them up; empty if none does."""
    for web in bed.webs:
        with suppress(*_AWAY):
            reply = web.ask("GET", "/metrics", timeout_s=5.0)
            if reply.status == 200:
                return _parsed(reply.body.decode())
    return {}


def _parsed(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


def relay_lag_s(found: Mapping[str, Mapping[Any, float]]) -> float:
    return max(found.get("mlserve_relay_lag_seconds", {}).values(), default=float("inf"))


def epochs(found: Mapping[str, Mapping[Any, float]]) -> dict[str, float]:
    return {dict(labels).get("partition", ""): value for labels, value in found.get("mlserve_cache_epoch", {}).items()}


def errors_500(found: Mapping[str, Mapping[Any, float]]) -> float:
    counted = found.get("mlserve_http_requests_total", {})
    return sum(value for labels, value in counted.items() if dict(labels).get("status") == "500")


# --- processes and files ---


def process_samples(bed: Testbed) -> dict[str, ProcessSample]:
    found = {}
    for name, process in bed.processes().items():
        with suppress(psutil.Error):
            found[name] = ProcessSample(
                threads=process.num_threads(), files=process.num_fds(), rss_bytes=process.memory_info().rss
            )
    return found


def file_sizes(bed: Testbed) -> dict[str, int]:
    """Of all files below MLSERVE_VAR_DIR, which the servers' own are not."""
    found = {}
    for path in bed.var.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                found[str(path.relative_to(bed.var))] = path.stat().st_size
    return found


def busy_sessions(bed: Testbed) -> list[Session]:
    """Sessions of ours that are in a transaction or wait, longest first."""
    with bed.database() as session:
        rows = session.execute(
            "SELECT application_name, state, coalesce(wait_event_type, '') || ' ' || coalesce(wait_event, ''), "
            "extract(epoch FROM clock_timestamp() - coalesce(xact_start, state_change))::float8, query "
            "FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle' "
            "AND pid <> pg_backend_pid() ORDER BY 4 DESC"
        ).fetchall()
    return [Session(application=row[0], state=row[1], wait=row[2], seconds=row[3], query=row[4]) for row in rows]


def tracebacks(bed: Testbed) -> dict[str, int]:
    """By the last line of each, with the log in which it stands."""
    found: Counter[str] = Counter()
    for log in sorted((bed.var / "log").glob("*.log*")):
        found.update(f"{log.name}: {line}" for line in raised(log.read_text("utf-8", "replace").splitlines()))
    return dict(found)


def raised(lines: Sequence[str]) -> Iterator[str]:
    """What each traceback ends with; of a chain of them, each the cause of the next, the last one's."""
    inside, ended = False, ""
    for line in lines:
        if _TRACEBACK in line:
            inside = True
        elif inside and _RAISED.match(line):
            inside, ended = False, line[:300]
        elif line.startswith(_CHAINED):
            ended = ""
        elif ended and line.strip():
            yield ended
            ended = ""
    if ended:
        yield ended


def silent_processes(bed: Testbed, *, within_s: float) -> list[str]:
    """Processes that are not there, and web processes that do not answer."""
    missing = [f"{name} does not run" for name in bed.recipes if bed.pid_of(name) is None]
    for place, web in enumerate(bed.webs):
        began = time.monotonic()
        try:
            status = web.ask("GET", "/healthz/live", timeout_s=within_s).status
        except _AWAY as error:
            missing.append(f"web-{place}: {error}")
            continue
        if status != 200:
            missing.append(f"web-{place} answers {status} after {time.monotonic() - began:.1f} s")
    return missing


def doctors_findings(bed: Testbed) -> list[tuple[str, str, str]]:
    """What is not ok: level, subject, detail."""
    document = json.loads(bed.manage("doctor", "--json", within_s=120, fails=False))
    return [
        (finding["level"], finding["subject"], finding["detail"])
        for finding in document["findings"]
        if finding["level"] != "ok"
    ]


def wait_until(condition: Callable[[], bool], *, bed: Testbed, within_s: float) -> float | None:
    """After how many seconds it was true; None if not in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            return None
        bed.pause(0.2)
    return time.monotonic() - began
