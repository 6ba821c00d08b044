"""What a Redis-protocol server says about itself: version, memory limit, eviction policy."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

TIMEOUT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RedisFacts:
    """`maxmemory_bytes` 0 means no limit. `product` is `Valkey` or `Redis`. A Sentinel has no memory policy: `none`."""

    product: str
    version: str
    maxmemory_bytes: int
    maxmemory_policy: str

    @property
    def evicts(self) -> bool:
        return self.maxmemory_policy != "noeviction"


def ask(url: str) -> RedisFacts:
    """Raises redis.RedisError if the server does not answer within a second."""
    client = redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    try:
        return facts_of(client)
    finally:
        client.close()


def facts_of(client: Any) -> RedisFacts:
    """By a client that decodes responses. Raises redis.RedisError."""
    found = client.info("everything")
    is_valkey = "valkey_version" in found  # Valkey also says redis_version 7.2.4, for old clients
    return RedisFacts(
        product="Valkey" if is_valkey else "Redis",
        version=str(found["valkey_version" if is_valkey else "redis_version"]),
        maxmemory_bytes=int(found.get("maxmemory", 0)),
        maxmemory_policy=str(found.get("maxmemory_policy", "none")),
    )


def address(url: str) -> str:
    """Host and port of a URL, without its password; the path of a Unix socket."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def same_server(one: str, other: str) -> bool:
    """Whether two URLs lead to one server: its databases share memory, eviction and fate."""
    return same_address(address(one), address(other))


def same_address(one: str, other: str) -> bool:
    """Whether two addresses are one; the names of this host are taken for each other."""
    names = {"localhost": "127.0.0.1", "[::1]": "127.0.0.1", "::1": "127.0.0.1"}
    first, second = (text.rpartition(":") for text in (one, other))
    return names.get(first[0], first[0]) == names.get(second[0], second[0]) and first[2] == second[2]
