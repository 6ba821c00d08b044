"""Faces others: refuses defaults, speaks HTTPS only."""

from django.core.exceptions import ImproperlyConfigured

from mlserve.settings import env
from mlserve.settings.base import *  # noqa: F403

_missing = [
    name
    for name, value in (
        ("MLSERVE_SECRET_KEY", env.SECRET_KEY),
        ("DATABASE_URL", env.DATABASE_URL),
        ("REDIS_CACHE_URL", env.REDIS_CACHE_URL),
        ("REDIS_BROKER_URL", env.REDIS_BROKER_URL),
        (f"MLSERVE_CACHE_MAC_KEY (or the word {env.MAC_OFF})", env.CACHE_MAC_KEY),
    )
    if not value
]
if _missing:
    raise ImproperlyConfigured(f"production needs these environment variables: {', '.join(_missing)}")
_weak = [
    f"{whose} needs at least 50 characters, 5 of them different"
    for whose, keys in (
        ("MLSERVE_SECRET_KEY", [env.SECRET_KEY]),
        ("each key of MLSERVE_SECRET_KEY_FALLBACKS", env.SECRET_KEY_FALLBACKS),
    )
    if any(len(key) < 50 or len(set(key)) < 5 for key in keys)
]
if _weak:
    raise ImproperlyConfigured("; ".join(_weak))

SECURE_SSL_REDIRECT = env.HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.HTTPS else None
SECURE_REDIRECT_EXEMPT = [r"^healthz/", r"^metrics$"]
SESSION_COOKIE_SECURE = env.HTTPS
CSRF_COOKIE_SECURE = env.HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if env.HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.HTTPS
SECURE_HSTS_PRELOAD = env.HTTPS
