"""The doctor on what every installation has: Python, PostgreSQL, two Valkeys, migrations, Celery."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

import psycopg
import redis
from celery import current_app
from django.conf import settings
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
)
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Max
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from mlserve.platform import l2_nodes, redis_facts
from mlserve.platform.diagnosis import Finding, Level, register
from mlserve.postgres import probe
from mlserve.postgres.failures import Failure, failure_of
from mlserve.postgres.pooler import Pooling, is_declared, pooling
from mlserve.settings.redis_url import Mode

_OLDEST_POSTGRES = 14  # what Django 5.2 supports
_WORKER_PING_S = 1.0
# Beat writes down what it ran every three minutes.
_BEAT_SILENCE = timedelta(minutes=6)
_START_SERVERS = "`manage.py services up` starts the embedded servers; or correct {variable}"


def diagnose_python() -> Iterable[Finding]:
    yield Finding(subject="Python", level=Level.OK, detail=platform.python_version())


def diagnose_postgres() -> Iterable[Finding]:
    where = f"{connection.settings_dict['HOST']}:{connection.settings_dict['PORT']}"
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('server_version'), current_setting('server_version_num')::int")
            version, number = cursor.fetchone()
    except OperationalError as error:
        detail = f"{where} does not answer: {str(error).strip().splitlines()[0]}"
        yield Finding(
            subject="PostgreSQL",
            level=Level.FAIL,
            detail=detail,
            fix=_START_SERVERS.format(variable="DATABASE_URL"),
        )
        return
    old = number < _OLDEST_POSTGRES * 10_000
    yield Finding(
        subject="PostgreSQL",
        level=Level.FAIL if old else Level.OK,
        detail=f"{version} at {where}",
        fix=f"upgrade to PostgreSQL {_OLDEST_POSTGRES} or newer" if old else "",
    )


def diagnose_postgres_writes() -> Iterable[Finding]:
    """Decisions need it: without, they wait in the spool of their host."""
    try:
        probe.require_writable()
    except DatabaseError as error:
        if failure_of(error) is not Failure.READ_ONLY:
            yield _unknown("PostgreSQL writes", because="PostgreSQL does not answer")
            return
        yield Finding(
            subject="PostgreSQL writes",
            level=Level.FAIL,
            detail=f"refused: {str(error).strip().splitlines()[0]}; decisions wait on the disks of their hosts",
            fix="promote the standby, or let DATABASE_URL lead to the primary; or set default_transaction_read_only = "
            "off where it is on (server, database or role), and make room if the disk is full",
        )
        return
    yield Finding(subject="PostgreSQL writes", level=Level.OK, detail="taken")


def diagnose_pooler() -> Iterable[Finding]:
    """A pooler in transaction mode needs a setting, and another address for whoever needs a session."""
    try:
        found = pooling()
    except psycopg.Error:
        yield _unknown("pooler", because="PostgreSQL does not answer")
        return
    declared = is_declared()
    fix = ""
    if found is Pooling.NONE:
        detail = "none between here and PostgreSQL"
    else:
        detail = f"DATABASE_URL leads to a pooler (PgBouncer or the like) in {found} mode"
    if found is Pooling.TRANSACTION and not declared:
        fix = "set MLSERVE_DB_TRANSACTION_POOLER=true: what one session sets or prepares, others would find or miss"
    elif declared and not settings.DATABASE_DIRECT_URL:
        fix = "set DATABASE_DIRECT_URL to PostgreSQL's own address: the relay needs a session of its own"
    elif declared and found is not Pooling.TRANSACTION:
        detail += ", although MLSERVE_DB_TRANSACTION_POOLER says transaction mode"
    level = Level.FAIL if fix else Level.OK
    yield Finding(subject="pooler", level=level, detail=detail, fix=fix)


def diagnose_migrations() -> Iterable[Finding]:
    try:
        executor = MigrationExecutor(connections[DEFAULT_DB_ALIAS])
        pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except OperationalError:
        yield _unknown("migrations", because="PostgreSQL does not answer")
        return
    yield Finding(
        subject="migrations",
        level=Level.FAIL if pending else Level.OK,
        detail=f"{len(pending)} not applied" if pending else "all applied",
        fix="manage.py migrate" if pending else "",
    )


def diagnose_cache() -> Iterable[Finding]:
    nodes = l2_nodes.survey(settings.CACHES["l2"])
    mode = l2_nodes.mode_of(settings.CACHES["l2"])
    primaries = [node for node in nodes if node.role is l2_nodes.Role.PRIMARY]
    lost = [node for node in primaries if node.facts is None]
    if mode is not Mode.STANDALONE:
        yield from map(_cache_node, nodes)
    if not primaries or lost:
        where = "; ".join(f"{node.address} {node.problem}" for node in lost) or "nobody names a primary"
        yield Finding(
            subject="cache",
            level=Level.FAIL,
            detail=where,
            fix=_START_SERVERS.format(variable="REDIS_CACHE_URL")
            if mode is Mode.STANDALONE
            else "mend the servers named above; or correct REDIS_CACHE_URL",
        )
    else:
        versions = sorted({f"{node.facts.product} {node.facts.version}" for node in primaries if node.facts})
        where = ", ".join(node.address for node in primaries)
        suffix = "" if mode is Mode.STANDALONE else f" ({mode}, {len(primaries)} primary servers)"
        yield Finding(subject="cache", level=Level.OK, detail=f"{', '.join(versions)} at {where}{suffix}")
    yield from _cache_policy([node.facts for node in primaries if node.facts is not None])


def _cache_node(node: l2_nodes.L2Node) -> Finding:
    fine = node.facts is not None
    return Finding(
        subject=f"cache {node.role} {node.address}",
        level=Level.OK if fine else Level.WARN,
        detail=f"{node.facts.product} {node.facts.version}" if node.facts else node.problem,
        fix="" if fine else "start it again; or take it out of the cluster or of REDIS_CACHE_URL",
    )


def _cache_policy(found: Sequence[redis_facts.RedisFacts]) -> Iterable[Finding]:
    for limit_bytes, policy in sorted({(facts.maxmemory_bytes, facts.maxmemory_policy) for facts in found}):
        good = policy.startswith("volatile-")
        yield Finding(
            subject="cache policy",
            level=Level.OK if good else Level.WARN,
            detail=f"maxmemory {limit_bytes / 2**20:.0f} MiB, {policy}",
            fix="" if good else "set maxmemory-policy volatile-lfu on the cache's server",
        )


def diagnose_broker() -> Iterable[Finding]:
    url = str(settings.REDIS_BROKER_URL)
    facts, findings = _reach("broker", url, variable="REDIS_BROKER_URL")
    yield from findings
    if facts is None:
        return
    yield Finding(
        subject="broker policy",
        level=Level.FAIL if facts.evicts else Level.OK,
        detail=facts.maxmemory_policy,
        fix="set maxmemory-policy noeviction on the broker's server: it can evict tasks" if facts.evicts else "",
    )
    alias = settings.CACHES["l2"]
    cache = {*l2_nodes.configured(alias), *(node.address for node in l2_nodes.survey(alias))}
    one = any(redis_facts.same_address(redis_facts.address(url), address) for address in cache)
    yield Finding(
        subject="cache and broker",
        level=Level.FAIL if one else Level.OK,
        detail="one server" if one else "two servers",
        fix="set REDIS_CACHE_URL and REDIS_BROKER_URL to two servers" if one else "",
    )


def diagnose_workers() -> Iterable[Finding]:
    try:
        redis_facts.ask(str(settings.REDIS_BROKER_URL))
    except redis.RedisError:
        yield _unknown("Celery worker", because="the broker does not answer")
        return
    names = sorted(name for answer in current_app.control.ping(timeout=_WORKER_PING_S) or [] for name in answer)
    yield Finding(
        subject="Celery worker",
        level=Level.OK if names else Level.WARN,
        detail=", ".join(names) or f"none answered within {_WORKER_PING_S:.0f} s; nothing keeps the cache warm",
        fix="" if names else "celery -A mlserve.celery worker",
    )


def diagnose_beat() -> Iterable[Finding]:
    try:
        last = PeriodicTask.objects.aggregate(last=Max("last_run_at"))["last"]
    except OperationalError:
        yield _unknown("Celery beat", because="PostgreSQL does not answer")
        return
    except ProgrammingError:
        yield _unknown("Celery beat", because="its tables are not there before `manage.py migrate`")
        return
    silent = last is None or timezone.now() - last > _BEAT_SILENCE
    yield Finding(
        subject="Celery beat",
        level=Level.WARN if silent else Level.OK,
        detail="never ran" if last is None else f"last noted a run at {last:%Y-%m-%d %H:%M:%S} UTC",
        fix="celery -A mlserve.celery beat (exactly one)" if silent else "",
    )


def _reach(subject: str, url: str, *, variable: str) -> tuple[redis_facts.RedisFacts | None, Iterator[Finding]]:
    where = redis_facts.address(url)
    try:
        facts = redis_facts.ask(url)
    except redis.RedisError as error:
        fix = _START_SERVERS.format(variable=variable)
        finding = Finding(subject=subject, level=Level.FAIL, detail=f"{where} does not answer: {error}", fix=fix)
        return None, iter([finding])
    return facts, iter([Finding(subject=subject, level=Level.OK, detail=f"{facts.product} {facts.version} at {where}")])


def _unknown(subject: str, *, because: str) -> Finding:
    return Finding(subject=subject, level=Level.WARN, detail=f"not examined: {because}", fix="mend that first")


for _subject, _diagnosis in (
    ("Python", diagnose_python),
    ("PostgreSQL", diagnose_postgres),
    ("PostgreSQL writes", diagnose_postgres_writes),
    ("pooler", diagnose_pooler),
    ("migrations", diagnose_migrations),
    ("cache", diagnose_cache),
    ("broker", diagnose_broker),
    ("Celery worker", diagnose_workers),
    ("Celery beat", diagnose_beat),
):
    register(_subject, _diagnosis)
