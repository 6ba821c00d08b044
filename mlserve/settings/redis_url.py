"""Where L2 lives: the forms of `REDIS_CACHE_URL`, and the cache alias that each of them means.

    redis://[[user]:password@]host[:port][/db]                                one server; also rediss:// and unix://
    redis+sentinel://[[user]:password@]host[:port],...[/service[/db]][?sentinel_password=...]
    redis+cluster://[[user]:password@]host[:port],...

`rediss+sentinel` and `rediss+cluster` speak TLS. Passwords are percent-encoded; an IPv6 address stands in brackets.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

STANDALONE_PORT = 6379
SENTINEL_PORT = 26379
CLUSTER_PARTITIONS = 16
"""Enough to spread over a handful of nodes, few enough that each partition's watermark costs nothing."""
MAX_CONNECTIONS = 64
"""Per process and node; a request that finds them all in use goes to the source."""

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>.*))?")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")


class Mode(StrEnum):
    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_SCHEMES = {
    "redis": (Mode.STANDALONE, False),
    "rediss": (Mode.STANDALONE, True),
    "unix": (Mode.STANDALONE, False),
    "redis+sentinel": (Mode.SENTINEL, False),
    "rediss+sentinel": (Mode.SENTINEL, True),
    "redis+cluster": (Mode.CLUSTER, False),
    "rediss+cluster": (Mode.CLUSTER, True),
}


class RedisUrlError(ValueError):
    """The URL is none of the forms; the message says which part and how to write it, and holds no password."""


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """`nodes`: Sentinels or cluster seeds, (host, port) each; empty where `url` says all (standalone)."""

    mode: Mode
    url: str = field(repr=False)
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: bool = False


def parse(url: str) -> RedisAddress:
    """Raises RedisUrlError."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        # Not the text before a missing "://": it may be a password.
        found = f"{scheme}://" if separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) else "no scheme"
        raise RedisUrlError(f"it begins with {found}; write one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    mode, tls = _SCHEMES[scheme]
    if "#" in rest:
        raise RedisUrlError("it has a '#'; in a password write %23")
    authority, path, query = _split(rest)
    if mode is Mode.STANDALONE:
        if "," in authority.rpartition("@")[2]:
            raise RedisUrlError("it names several hosts; write redis+sentinel:// or redis+cluster://")
        _validate_standalone(url)
        return RedisAddress(mode=mode, url=url, tls=tls)
    credentials, _, hosts = authority.rpartition("@")
    username, password = _credentials(credentials)
    default_port = SENTINEL_PORT if mode is Mode.SENTINEL else STANDALONE_PORT
    nodes = tuple(_node(text, default_port) for text in hosts.split(","))
    options = _options(query, {"sentinel_username", "sentinel_password"} if mode is Mode.SENTINEL else set())
    service, db = _service(path) if mode is Mode.SENTINEL else ("", _no_db(path))
    return RedisAddress(
        mode=mode,
        url=url,
        nodes=nodes,
        service=service,
        db=db,
        username=username,
        password=password,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        tls=tls,
    )


def partitions(url: str) -> int:
    """How many partitions L2 has where nobody says: on one server a second one only costs."""
    return CLUSTER_PARTITIONS if url and parse(url).mode is Mode.CLUSTER else 1


def l2_alias(url: str, *, timeout_s: float) -> dict[str, Any]:
    """`CACHES["l2"]`. `timeout_s`: for connecting, and for each answer."""
    address = parse(url)
    common: dict[str, Any] = {
        "SERIALIZER": "mlserve.cache.tiers.serializer.MsgspecSerializer",
        "SOCKET_TIMEOUT": timeout_s,
        "SOCKET_CONNECT_TIMEOUT": timeout_s,
        "CONNECTION_POOL_KWARGS": {"max_connections": MAX_CONNECTIONS},
    }
    location, options = url, {}
    if address.mode is Mode.SENTINEL:
        location, options = f"redis://{address.service}/{address.db}", _sentinel_options(address, common)
    elif address.mode is Mode.CLUSTER:
        location, options = _cluster_location(address), _cluster_options(address, common)
    return {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location, "OPTIONS": {**common, **options}}


def _sentinel_options(address: RedisAddress, common: Mapping[str, Any]) -> dict[str, Any]:
    share_s = common["SOCKET_TIMEOUT"] / len(
        address.nodes
    )  # so that asking all of them takes no longer than one answer
    timeouts = {"socket_timeout": share_s, "socket_connect_timeout": share_s}
    own = {"username": address.sentinel_username, "password": address.sentinel_password}
    tls = {"ssl": True} if address.tls else {}
    return {
        # And not django-redis' SentinelClient, which reads from replicas: they can be behind what was invalidated.
        "CLIENT_CLASS": "django_redis.client.DefaultClient",
        "CONNECTION_FACTORY": "mlserve.cache.tiers.sentinel.SentinelFactory",
        "SENTINELS": list(address.nodes),
        "SENTINEL_SERVICE": address.service,
        "SENTINEL_KWARGS": {**timeouts, **_given(own), **tls},
        # Not by the scheme: `rediss://` would choose a connection that asks no Sentinel.
        "CONNECTION_POOL_KWARGS": {**common["CONNECTION_POOL_KWARGS"], **tls},
        **_login(address),
    }


def _cluster_options(address: RedisAddress, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "CLIENT_CLASS": "mlserve.cache.tiers.cluster_alias.ClusterClient",
        "CONNECTION_FACTORY": "mlserve.cache.tiers.cluster_alias.ClusterFactory",
        "CLUSTER_NODES": list(address.nodes),
        "CONNECTION_POOL_KWARGS": {**common["CONNECTION_POOL_KWARGS"], **({"ssl": True} if address.tls else {})},
        **_login(address),
    }


def _cluster_location(address: RedisAddress) -> str:
    """For people to read; the client takes its seeds from the options."""
    host, port = address.nodes[0]
    return f"redis://{f'[{host}]' if ':' in host else host}:{port}"


def _login(address: RedisAddress) -> dict[str, str]:
    return _given({"USERNAME": address.username, "PASSWORD": address.password})


def _given(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _validate_standalone(url: str) -> None:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise RedisUrlError("its host or port cannot be read; write host:port, percent-encode the password") from None
    if parts.scheme == "unix":
        if not parts.path:
            raise RedisUrlError("it names no socket; write unix:///path/to/socket")
        return
    if not host:
        raise RedisUrlError("it names no host; write redis://host:port/0")
    if port == 0:
        raise RedisUrlError("port 0 is no number from 1 to 65535")
    if parts.path not in ("", "/"):
        _db(parts.path.removeprefix("/"))


def _split(rest: str) -> tuple[str, str, str]:
    head, _, query = rest.partition("?")
    # The last "@" ends the credentials, whatever a password that was not encoded holds.
    at = head.rfind("@") + 1
    slash = head.find("/", at)
    return (head, "", query) if slash < 0 else (head[:slash], head[slash + 1 :], query)


def _credentials(text: str) -> tuple[str | None, str | None]:
    user, colon, password = text.partition(":")
    if not text:
        return None, None
    if not colon:
        raise RedisUrlError("before the '@' stands no ':'; write :password@ or user:password@")
    return unquote(user) or None, unquote(password) or None


def _node(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text.strip())
    if found is None:
        # The text is not shown: where the '@' is missing, it is the password.
        detail = "a host that cannot be read" if text.strip() else "an empty host"
        raise RedisUrlError(f"it names {detail}; write host1:port,host2:port, an IPv6 address in brackets")
    port = found["port"]
    if port is None:
        return found["v6"] or found["name"], default_port
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise RedisUrlError(f"the port of {found['v6'] or found['name']} is no number from 1 to 65535")
    return found["v6"] or found["name"], int(port)


def _service(path: str) -> tuple[str, int]:
    service, _, db = path.partition("/")
    service = unquote(service)
    if not service:
        raise RedisUrlError("it names no service; write redis+sentinel://host:port/service-name/0")
    if not _SERVICE.fullmatch(service):
        raise RedisUrlError("the service name has other characters than letters, digits, '.', '_' and '-'")
    return service, _db(db) if db else 0


def _no_db(path: str) -> int:
    if path not in ("", "0"):
        raise RedisUrlError("a cluster has only database 0; leave out what follows the hosts")
    return 0


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise RedisUrlError("what follows host and port is no number of a database; write /0")
    return int(text)


def _options(query: str, known: set[str]) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if set(options) - known:
        raise RedisUrlError(f"it has unknown options after the '?'; known are: {', '.join(sorted(known)) or 'none'}")
    return options
