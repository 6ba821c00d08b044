"""All valid API keys as PostgreSQL said them last: in this process, and on the disk for one that starts without it.

A poller asks for all of them, so that a key is known here whether or not this process has seen it. Only digests are
kept, and only for as long as an outage may be bridged (`lookup.KEPT_FOR_S`): the copy on disk says when PostgreSQL was
asked, and its age is counted on across a restart. A key that is revoked is not in the next copy, seconds later.
"""

import threading
from typing import Final, NamedTuple

import msgspec

from mlserve.api.models import ApiKey
from mlserve.cache.clock import SystemClock
from mlserve.local_copy import LocalCopy
from mlserve.poller import Poller

POLL_INTERVAL_S: Final = 2.0
REFRESH_S: Final = 10.0
"""How often unchanged keys are written again: a copy is worth that much less after a restart."""
MAX_KEYS: Final = 10_000
"""The newest; older ones are looked up one by one as ever, and do not outlast an outage that a process starts in."""
_SCHEMA: Final = 1
_FIELDS: Final = ("digest", "prefix", "name", "scopes", "rate_per_s", "burst")


class KeptKey(msgspec.Struct, frozen=True):
    """A valid key: the columns of `ApiKey` that a request needs."""

    digest: str
    prefix: str
    name: str
    scopes: tuple[str, ...]
    rate_per_s: int | None
    burst: int | None


class Confirmed(NamedTuple):
    """A key and when PostgreSQL said that it is valid (s since 1970)."""

    key: KeptKey
    at: float


def keys_copy() -> LocalCopy[tuple[KeptKey, ...]]:
    """The keys on this host's disk."""
    return LocalCopy("keys", tuple[KeptKey, ...], schema=_SCHEMA, refresh_s=REFRESH_S)


class KeyCopy:
    """Of one process. Thread-safe. `find` costs a look-up in memory, and reads the disk once per process at most."""

    def __init__(self) -> None:
        self.poller = Poller("api-keys", POLL_INTERVAL_S, self._poll, then=self._keep)
        self._copy = keys_copy()
        self._changing = threading.Lock()
        self._keys: dict[str, KeptKey] | None = None
        self._at = 0.0
        self._revoked: dict[str, float] = {}
        self._is_own = False

    def find(self, digest: str) -> Confirmed | None:
        """What is known of the key without PostgreSQL; None if it is not among those that were valid. Never raises."""
        with self._changing:
            if self._keys is None:
                kept = self._copy.load()
                valid = () if kept is None else kept.content
                self._keys = {key.digest: key for key in valid if key.digest not in self._revoked}
                self._at = 0.0 if kept is None else kept.confirmed_at
            key = self._keys.get(digest)
            return None if key is None else Confirmed(key, self._at)

    def revoke(self, digest: str) -> None:
        """PostgreSQL has just said that this key is not valid: no answer that was asked for earlier says otherwise."""
        with self._changing:
            if self._keys is None or self._keys.pop(digest, None) is not None:
                self._revoked[digest] = SystemClock.now()

    def forget(self) -> None:
        """As a process begins."""
        self.poller.stop()
        with self._changing:
            self._keys, self._is_own = None, False
            self._revoked.clear()

    def _poll(self) -> None:
        asked_at = SystemClock.now()
        rows = ApiKey.objects.filter(revoked_at=None).order_by("-id").values_list(*_FIELDS)[:MAX_KEYS]
        keys = {row[0]: KeptKey(row[0], row[1], row[2], tuple(row[3]), row[4], row[5]) for row in rows}
        with self._changing:
            for digest, revoked_at in list(self._revoked.items()):
                if revoked_at >= asked_at:
                    keys.pop(digest, None)
                else:
                    del self._revoked[digest]
            self._keys, self._at, self._is_own = keys, asked_at, True

    def _keep(self) -> None:
        with self._changing:
            keys = tuple(self._keys.values()) if self._keys is not None and self._is_own else None
            at = self._at
        if keys is not None:
            self._copy.save(keys, confirmed_at=at)


key_copy: Final = KeyCopy()
"""This process's."""
