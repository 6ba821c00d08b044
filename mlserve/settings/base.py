"""What all environments share. No setting is read from `os.environ` here: see `env.py`."""

from typing import Any

import dj_database_url
from celery.schedules import crontab
from csp.constants import NONE, SELF
from kombu import Queue

from mlserve.postgres.sessions import POOLER_OPTION, BoundedConnection
from mlserve.settings import env, redis_url, threads

BASE_DIR = env.BASE_DIR
VAR_DIR = env.VAR_DIR
METRICS_DIR = env.METRICS_DIR
SECRET_KEY = env.SECRET_KEY
SECRET_KEY_FALLBACKS = env.SECRET_KEY_FALLBACKS
ALLOWED_HOSTS = env.ALLOWED_HOSTS
CSRF_TRUSTED_ORIGINS = env.CSRF_TRUSTED_ORIGINS
DEBUG = False

# Ports that nothing listens on: commands that need no server (`check`, `makemigrations`) run without one.
_NO_SERVER = "127.0.0.1:1"

INSTALLED_APPS = [
    "mlserve.api",
    "mlserve.platform",
    "features",
    "predictions",
    "warmup",
    "mlserve.console",
    "mlserve.console.apps.ConsoleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "csp",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_celery_beat",
]

MIDDLEWARE = [
    "mlserve.observability.middleware.RequestContextMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "mlserve.api.page_middleware.PagePolicy",
    "mlserve.api.page_middleware.PageOutages",
    "mlserve.api.page_middleware.PageSessions",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "mlserve.api.page_middleware.PageUsers",
    "mlserve.api.page_middleware.PageMessages",
]

ROOT_URLCONF = "mlserve.urls"
WSGI_APPLICATION = "mlserve.wsgi.application"
APPEND_SLASH = False
CSRF_FAILURE_VIEW = "mlserve.api.problems.csrf_failure"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# The pool doubles its pause between attempts until reconnect_timeout: a short one notices soon that an outage is over.
_POOL_LIMITS = {
    "min_size": 1,
    "max_size": env.DB_POOL_MAX_SIZE,
    "timeout": 2.0,
    "reconnect_timeout": 2.0,
    "connection_class": BoundedConnection,
}


def _database(url: str, *, transaction_pooler: bool) -> dict[str, Any]:
    parsed: dict[str, Any] = dict(dj_database_url.parse(url, engine="mlserve.postgres.backend"))
    options = {
        "connect_timeout": 2,
        # Django turns preparing off unless it is told when to; its own cursors never do.
        "prepare_threshold": None if transaction_pooler else 2,
        POOLER_OPTION: transaction_pooler,
        **parsed.get("OPTIONS", {}),  # what the URL itself says, sslmode for one
    }
    if env.DB_POOL_MAX_SIZE:
        options["pool"] = _POOL_LIMITS
    return {
        **parsed,
        "CONN_HEALTH_CHECKS": True,
        "CONN_MAX_AGE": 0 if env.DB_POOL_MAX_SIZE else None,
        "DISABLE_SERVER_SIDE_CURSORS": transaction_pooler,
        "OPTIONS": options,
    }


DATABASES: dict[str, Any] = {
    "default": _database(
        env.DATABASE_URL or f"postgresql://mlserve@{_NO_SERVER}/mlserve", transaction_pooler=env.DB_TRANSACTION_POOLER
    )
}
DATABASE_DIRECT_URL = env.DATABASE_DIRECT_URL
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHE_BUDGET_MS = env.CACHE_BUDGET_MS
CACHE_PARTITIONS = env.CACHE_PARTITIONS
CACHE_MAC_KEY = "" if env.CACHE_MAC_KEY == env.MAC_OFF else env.CACHE_MAC_KEY
FRESHNESS_BOUND_S = env.FRESHNESS_BOUND_MS / 1000
INSPECTION_SWITCHES_OFF = env.INSPECTION_SWITCHES_OFF
CACHE_MAX_NEGATIVES = env.CACHE_MAX_NEGATIVES
L3_MAX_READS = env.L3_MAX_READS
REDIS_BROKER_URL = env.REDIS_BROKER_URL or f"redis://{_NO_SERVER}/0"
CACHES: dict[str, Any] = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "l1": {
        "BACKEND": "mlserve.cache.tiers.l1_locmem.BoundedLocMemCache",
        "OPTIONS": {"MAX_ENTRIES": env.L1_MAX_ENTRIES, "MAX_BYTES": env.L1_MAX_BYTES},
    },
    "l2": redis_url.l2_alias(env.REDIS_CACHE_URL or f"redis://{_NO_SERVER}/0", timeout_s=env.CACHE_BUDGET_MS / 1000),
}

API_KEY = env.API_KEY
WEB_THREADS = env.WEB_THREADS
SCORES_AT_ONCE = env.SCORES_AT_ONCE
SCORES_WAITING = env.SCORES_WAITING
THREAD_SHARES = threads.divide(threads=WEB_THREADS, at_once=SCORES_AT_ONCE, waiting=SCORES_WAITING)
RATE_LIMIT_PER_S = env.RATE_LIMIT_PER_S
RATE_LIMIT_BURST = env.RATE_LIMIT_BURST

# Celery: the worker's settings. Nothing on the request path publishes, a hung broker would block it.
CELERY_BROKER_URL = REDIS_BROKER_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 5.0, "socket_connect_timeout": 2.0}
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_EXPIRES = None  # no results, so nothing for beat to clean up
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TIMEZONE = "UTC"
CELERY_ENABLE_UTC = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_CONCURRENCY = 2
CELERY_TASK_TIME_LIMIT = 600
CELERY_TASK_SOFT_TIME_LIMIT = 540
CELERY_DB_REUSE_MAX = 1000  # tasks per connection; otherwise each task makes a new one
# Two queues, each with a worker of its own, so that a build of minutes never delays a refresh that is due every 10 s.
# A worker that is given no queue serves both.
CELERY_TASK_DEFAULT_QUEUE = "refresh"
CELERY_TASK_QUEUES = (Queue("refresh"), Queue("build"))
CELERY_TASK_ROUTES = {
    "features.flush_write_behind": {"queue": "refresh"},
    "features.inspect_cache": {"queue": "refresh"},
    "features.catch_up": {"queue": "refresh"},
    "features.*": {"queue": "build"},
    "predictions.*": {"queue": "build"},
    "warmup.*": {"queue": "refresh"},
}
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 5.0


def _every(seconds: int, task: str) -> dict[str, Any]:
    """A message that no worker took by the time of the next one is worth nothing."""
    return {"task": task, "schedule": float(seconds), "options": {"expire_seconds": seconds}}


CELERY_BEAT_SCHEDULE: dict[str, Any] = {
    "refresh-hot-keys": _every(10, "warmup.refresh_hot_keys"),
    "record-cache-figures": _every(10, "warmup.record_cache_figures"),
    "flush-write-behind": _every(5, "features.flush_write_behind"),
    "catch-up-with-ledger": _every(5, "features.catch_up"),
    "rebuild-outdated-embeddings": _every(60, "features.rebuild_outdated_embeddings"),
    "keep-journal": _every(600, "features.keep_journal"),
    "inspect-cache": _every(15, "features.inspect_cache"),
    "warm-most-active": _every(300, "warmup.warm_most_active"),
    "build-bloom-filters": _every(300, "features.build_bloom_filters"),
    # A minute after the cutoffs (features/cutoffs.py), so that what occurred before them is there.
    # Profiles and embeddings change at midnight; the other builds of a day take in what arrived late, or was missed.
    "rebuild-merchant-risk": {
        "task": "features.rebuild_merchant_risk",
        "schedule": crontab(minute="1,31"),
        "options": {"expire_seconds": 1800},
    },
    "rebuild-profiles": {
        "task": "features.rebuild_profiles",
        "schedule": crontab(minute=2, hour="*/6"),
        "options": {"expire_seconds": 6 * 3600},
    },
    "build-embeddings": {
        "task": "features.build_embeddings",
        "schedule": crontab(minute=3, hour="*/3"),
        "options": {"expire_seconds": 3 * 3600},
    },
    "check-training-serving-skew": {
        "task": "predictions.check_training_serving_skew",
        "schedule": crontab(minute=20, hour=4),
        "options": {"expire_seconds": 24 * 3600},
    },
}

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["mlserve.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["mlserve.api.authentication.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "mlserve.api.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,  # `format` is a parameter like any other that nobody knows
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "mlserve",
    "DESCRIPTION": "Fraud scores for card transactions, with the age and tier of every feature behind them.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # The key that is typed in is not kept in the browser.
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": False, "tryItOutEnabled": False},
    "TAGS": [
        {"name": "scores", "description": "Score transactions and look at the scores that were given."},
        {"name": "labels", "description": "Say what became of transactions: fraud, or not."},
        {"name": "features", "description": "What is known about customers and merchants, and how long it is fresh."},
        {"name": "models", "description": "Model versions and which one serves."},
        {"name": "health", "description": "For orchestrators; no key needed."},
    ],
    "POSTPROCESSING_HOOKS": ["mlserve.api.openapi.add_components"],
}

# Where a log-in leads that names no page, or one that is not ours: Django's own default does not exist here.
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
FORMAT_MODULE_PATH = "mlserve.console.formats"

STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)
# Served from the packages themselves where nobody ran collectstatic.
WHITENOISE_USE_FINDERS = True

DATA_UPLOAD_MAX_MEMORY_SIZE = 256 * 1024
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    }
}

LOG_LEVEL = env.LOG_LEVEL
LOG_FORMAT = env.LOG_FORMAT
LOGGING_CONFIG = "mlserve.observability.logging.configure"
LOGGING = {"level": LOG_LEVEL, "format": LOG_FORMAT}
