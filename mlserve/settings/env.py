"""The only reader of the environment: every variable, typed, with its default and its meaning.

All mistakes are reported at once. The names that the ecosystem already knows (`DATABASE_URL`,
`REDIS_CACHE_URL`, `REDIS_BROKER_URL`, `PROMETHEUS_MULTIPROC_DIR`) keep their names; the rest begins with `MLSERVE_`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from environs import Env, EnvValidationError, ValidationError, validate

from mlserve.settings import redis_url, threads

BASE_DIR = Path(__file__).resolve().parent.parent.parent

_env = Env(eager=False)


def _redis_url(url: str) -> None:
    if url:
        try:
            redis_url.parse(url)
        except redis_url.RedisUrlError as error:
            raise ValidationError(str(error)) from None  # the cause would show the URL and its password


MAC_OFF = "off"


def _mac_key(key: str) -> None:
    if key not in ("", MAC_OFF) and (len(key) < 32 or len(set(key)) < 5):
        raise ValidationError(f"needs at least 32 characters, 5 of them different; or the word {MAC_OFF}")


def _no_gaps(keys: list[str]) -> None:
    if any(not key or key != key.strip() for key in keys):
        raise ValidationError("needs keys with a comma between them, and neither blanks nor empty places")


SECRET_KEY: str = _env.str("MLSERVE_SECRET_KEY", "")
"""Signs sessions; at least 50 characters in production."""
SECRET_KEY_FALLBACKS: list[str] = _env.list("MLSERVE_SECRET_KEY_FALLBACKS", [], validate=_no_gaps)
"""Other keys whose signatures count, while the key is rotated. An empty one would let everybody sign."""
ALLOWED_HOSTS: list[str] = _env.list("MLSERVE_ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS: list[str] = _env.list("MLSERVE_CSRF_TRUSTED_ORIGINS", [])
HTTPS: bool = _env.bool("MLSERVE_HTTPS", True)
"""Production only: TLS ends in front of the service; cookies are secure, HTTP is redirected."""

DATABASE_URL: str = _env.str("DATABASE_URL", "")
"""PostgreSQL, the source of truth. May not lose data."""
REDIS_CACHE_URL: str = _env.str("REDIS_CACHE_URL", "", validate=_redis_url)
"""L2: one server, Sentinels or a cluster (`redis_url.py`). May lose data at any moment; evicts."""
REDIS_BROKER_URL: str = _env.str("REDIS_BROKER_URL", "")
"""Celery's broker and the operators' series. Must never evict."""

VAR_DIR: Path = _env.path("MLSERVE_VAR_DIR", BASE_DIR / "var")
"""Run-time files: embedded servers, metric files, decision spool."""
METRICS_DIR: Path = _env.path("PROMETHEUS_MULTIPROC_DIR", VAR_DIR / "metrics")
"""Where the processes of one host keep their counters, to be added up by `/metrics`."""
LOG_LEVEL: str = _env.str(
    "MLSERVE_LOG_LEVEL",
    "INFO",
    validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
)
LOG_FORMAT: str = _env.str("MLSERVE_LOG_FORMAT", "console", validate=validate.OneOf(["console", "json"]))

DB_POOL_MAX_SIZE: int = _env.int("MLSERVE_DB_POOL_MAX_SIZE", 16, validate=validate.Range(min=0, max=1000))
"""Connections per web process: for all that it works on at once (`threads.py`) and a few for its own threads. 0: no
pool, each thread keeps one connection; right for Celery workers, which close a pool after every task."""
DB_TRANSACTION_POOLER: bool = _env.bool("MLSERVE_DB_TRANSACTION_POOLER", False)
"""DATABASE_URL leads to a pooler that gives a server to each transaction (PgBouncer with pool_mode=transaction). Then
nothing is prepared, and time limits go with each transaction."""
DATABASE_DIRECT_URL: str = _env.str("DATABASE_DIRECT_URL", "")
"""The same database past the pooler, for the relay, which keeps one session; by default DATABASE_URL."""
CACHE_BUDGET_MS: int = _env.int("MLSERVE_CACHE_BUDGET_MS", 50, validate=validate.Range(min=1, max=10_000))
"""The longest that one request waits for L2, whatever happens to it."""
_partitions: int | None = _env.int("MLSERVE_CACHE_PARTITIONS", None, validate=validate.Range(min=1, max=1024))
CACHE_MAC_KEY: str = _env.str("MLSERVE_CACHE_MAC_KEY", "", validate=_mac_key)
"""Seals records and watermarks in L2, so that nobody else can make some up. The same in all processes; another one
empties L2. The word `off`: they are not sealed."""
FRESHNESS_BOUND_MS: int = _env.int("MLSERVE_FRESHNESS_BOUND_MS", 1_000, validate=validate.Range(min=50, max=600_000))
"""Where freshness is proven: an unflagged value has every write that was acknowledged so long before it was read."""
INSPECTION_SWITCHES_OFF: bool = _env.bool("MLSERVE_INSPECTION_SWITCHES_OFF", True)
"""Whether a group of which the inspector finds a wrong copy is read from Postgres alone until an operator decides."""
CACHE_MAX_NEGATIVES: int = _env.int("MLSERVE_CACHE_MAX_NEGATIVES", 10_000, validate=validate.Range(min=0))
"""How many "the source knows nothing" one process may keep in the cache at a time."""
L3_MAX_READS: int = _env.int("MLSERVE_L3_MAX_READS", 8, validate=validate.Range(min=1, max=1000))
"""Reads of Postgres for cache misses that one process may have under way, whatever the hit rate."""
L1_MAX_ENTRIES: int = _env.int("MLSERVE_L1_MAX_ENTRIES", 100_000, validate=validate.Range(min=1))
L1_MAX_BYTES: int = _env.int("MLSERVE_L1_MAX_BYTES", 256 * 1024 * 1024, validate=validate.Range(min=1024))

WEB_THREADS: int = _env.int("GRANIAN_BLOCKING_THREADS", 26, validate=validate.Range(min=1, max=1000))
"""granian's own variable: threads of each web process. Named here, because they are divided (`threads.py`)."""
_threads = WEB_THREADS or 1  # nothing yet if it is no number, which is said with all other mistakes below
SCORES_AT_ONCE: int = _env.int(
    "MLSERVE_SCORES_AT_ONCE", threads.scores_at_once(_threads), validate=validate.Range(min=1, max=1000)
)
"""Scores that one process works on; by default a sixth of its threads, but four if there are so many."""
SCORES_WAITING: int = _env.int(
    "MLSERVE_SCORES_WAITING",
    threads.scores_waiting(_threads, SCORES_AT_ONCE or 1),
    validate=validate.Range(min=0, max=10_000),
)
"""Scores that may wait, for that or for their commit; by default a fourth of the threads, if enough are left over for
all that is no score, and to refuse. With four threads all work, and nobody waits."""
RATE_LIMIT_PER_S: int = _env.int("MLSERVE_RATE_LIMIT_PER_S", 0, validate=validate.Range(min=0, max=1_000_000))
"""Requests a second of an API key that has no limit of its own; 0: as many as it likes."""
RATE_LIMIT_BURST: int = _env.int("MLSERVE_RATE_LIMIT_BURST", 0, validate=validate.Range(min=0, max=1_000_000))
"""How many of them at once; 0: as many as in one second."""
API_KEY: str = _env.str("MLSERVE_API_KEY", "")
"""The key that `live_traffic` and `demo` use against the API. Not on a command line, where every user could read it."""

try:
    _env.seal()
except EnvValidationError as error:
    _by_name = error.error_messages if isinstance(error.error_messages, Mapping) else {"": error.error_messages}
    _mistakes = "; ".join(f"{name}: {' '.join(messages)}" for name, messages in _by_name.items())
    raise ImproperlyConfigured(f"the environment is wrong: {_mistakes}") from error

CACHE_PARTITIONS: int = _partitions or redis_url.partitions(REDIS_CACHE_URL)
"""Into how many parts L2's keys fall, each on one node of a cluster; 16 there and 1 elsewhere if nobody says. Another
number puts every key elsewhere: L2 is cold, and all processes must have the same."""

METRICS_DIR.mkdir(parents=True, exist_ok=True)  # prometheus-client does not make it


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with `changes`, for processes that it starts."""
    return {**os.environ, **changes}
