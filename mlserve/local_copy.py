"""What this host remembers of PostgreSQL, for a process that starts while PostgreSQL is away.

A process that runs keeps the model, the policies and the API keys that it has seen. One that starts has seen nothing:
so whoever keeps such a thing current also keeps a copy on the host's disk, and reads it at the start if PostgreSQL does
not answer. PostgreSQL decides again as soon as it does.

A copy is believed if it is whole, was written by this installation (a MAC under the secret key: a folder that somebody
else can write to must not hand out API keys) and is of this very database, under a name that this release knows.
Anything else is a miss, counted and logged. Nothing here raises: neither a disk that is full, read-only or gone nor
whatever lies in the folder may cost a score.

`last-known/<database>/` below VAR_DIR, mode 0700; files 0600, replaced in one step: temporary file, fsync, rename,
fsync of the folder. Of several processes the one that PostgreSQL answered last wins.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog
from django.conf import settings
from django.db import connections
from django.utils.encoding import force_bytes

from mlserve.cache.clock import SystemClock
from mlserve.observability import metrics

T = TypeVar("T")

REFRESH_S: Final = 60.0
"""How often an unchanged copy is written again, so that it says until when it was in force."""
CLOCK_SKEW_S: Final = 60.0
"""A copy from further in the future was written under another clock: how old it is nobody knows."""
MAX_COPY_BYTES: Final = 16 * 1024 * 1024
MAX_DATABASES: Final = 4
"""Folders of databases that are kept; the one that nothing was written to for longest goes first."""
_TEMPORARY: Final = ".new-"
_ABANDONED_S: Final = 3600.0
"""A temporary file of this age is of a process that was killed while it wrote."""
_PURPOSE: Final = b"local-copy-1"
_log = structlog.get_logger(__name__)
_clock = SystemClock()


class Unusable(Exception):
    """What lies there is no copy for us; the message says why."""


class Kept(msgspec.Struct, Generic[T], frozen=True):
    """`confirmed_at`: until when PostgreSQL is known to have said so (s since 1970)."""

    content: T
    confirmed_at: float


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    schema: int
    database: str
    confirmed_at: float
    content: msgspec.Raw


class LocalCopy(Generic[T]):
    """The copy of one thing. For one thread at a time. Another `schema` number makes copies of before a miss.

    `name` is also the label in metrics and logs.
    """

    def __init__(self, name: str, kind: Any, *, schema: int, refresh_s: float = REFRESH_S) -> None:
        self.name = name
        self._schema = schema
        self._refresh_s = refresh_s
        self._decoder = msgspec.json.Decoder(kind)
        self._written: tuple[Path, bytes] | None = None
        self._next_at = 0.0
        self._problem: str | None = None

    @property
    def path(self) -> Path:
        """Where it lies for the database of this moment."""
        return folder() / f"{self.name}.json"

    def save(self, content: T, *, confirmed_at: float) -> bool:
        """Keep what PostgreSQL said at `confirmed_at`; False if the disk does not take it. Never raises.

        Cheap where nothing has changed since the last time: it is then written again every `refresh_s` only, and after
        a failure tried again as seldom.
        """
        path, encoded = self.path, msgspec.json.encode(content)
        if self._written == (path, encoded) and self._next_at - self._refresh_s <= confirmed_at < self._next_at:
            return self._problem is None
        self._written, self._next_at = (path, encoded), confirmed_at + self._refresh_s
        try:
            if not self._is_newer_there(encoded, confirmed_at):
                write_atomically(path, self._sealed(encoded, confirmed_at))
        except OSError as error:
            self._note("save_failed", f"{path}: {error.strerror}")
            return False
        self._note("saved")
        return True

    def load(self) -> Kept[T] | None:
        """What was kept last; None if there is nothing, or nothing that can be believed. Never raises."""
        try:
            kept = self.read()
        except FileNotFoundError:
            self._note("missing")
            return None
        except (OSError, Unusable) as error:
            self._note("refused", str(error))
            return None
        self._note("loaded")
        return kept

    def read(self) -> Kept[T]:
        """The same for whoever wants to know why not. Raises Unusable or OSError; counts nothing."""
        envelope = self._opened()
        try:
            content: T = self._decoder.decode(envelope.content)
        except msgspec.MsgspecError as error:
            raise Unusable(f"{self.path.name} is not what this release writes: {error}") from None
        return Kept(content, envelope.confirmed_at)

    def discard(self) -> None:
        """PostgreSQL says that there is no such thing."""
        self._written = None
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _opened(self) -> _Envelope:
        path = self.path
        mac, _, payload = read_bounded(path, MAX_COPY_BYTES).partition(b"\n")
        if not any(
            compare_digest(_mac(secret, payload), mac)
            for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        ):
            raise Unusable(f"{path.name} is torn, or was not written under this secret key")
        try:
            envelope = msgspec.json.decode(payload, type=_Envelope)
        except msgspec.MsgspecError as error:
            raise Unusable(f"{path.name} is not what this release writes: {error}") from None
        if (envelope.name, envelope.schema) != (self.name, self._schema):
            raise Unusable(f"{path.name} has schema {envelope.schema}, this release writes {self._schema}")
        if envelope.database != database_identity():
            raise Unusable(f"{path.name} is of another database")
        if envelope.confirmed_at > _clock.now() + CLOCK_SKEW_S:
            raise Unusable(f"{path.name} is from the future: the host's clock has changed")
        return envelope

    def _is_newer_there(self, encoded: bytes, confirmed_at: float) -> bool:
        """Whether another process wrote what PostgreSQL said later, or the same a moment ago."""
        try:
            there = self._opened()
        except (OSError, Unusable):
            return False
        if bytes(there.content) == encoded:
            return there.confirmed_at > confirmed_at - self._refresh_s / 2
        return there.confirmed_at > confirmed_at

    def _sealed(self, encoded: bytes, confirmed_at: float) -> bytes:
        payload = msgspec.json.encode(
            _Envelope(self.name, self._schema, database_identity(), confirmed_at, msgspec.Raw(encoded))
        )
        return _mac(settings.SECRET_KEY, payload) + b"\n" + payload

    def _note(self, outcome: str, problem: str | None = None) -> None:
        """Counted each time, said once."""
        metrics.LOCAL_COPIES.labels(self.name, outcome).inc()
        before, self._problem = self._problem, problem
        if problem is not None and problem != before:
            _log.warning("local_copy_failed", copy=self.name, outcome=outcome, error=problem)


def moment(at: float) -> str:
    """For people: `at` (s since 1970) in UTC, to the second."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def folder() -> Path:
    """Where the copies of the present database lie."""
    return _root() / database_identity()[:16]


def database_identity() -> str:
    """A digest of the database's address and name: what is known of another one says nothing of this one."""
    of = connections["default"].settings_dict
    named = (of.get("HOST") or "", of.get("PORT") or "", of.get("NAME") or "")
    return sha256("\0".join(str(part) for part in named).encode()).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """The file as a whole, on the disk when this returns; after a crash the old one or the new one. Raises OSError."""
    _make_folder(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The file's bytes. Raises OSError, or Unusable for what is no file of ours: a link, a pipe, too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unusable(f"{path.name} is no file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise Unusable(f"{path.name} has more than {max_bytes:,} bytes")
    return content


def _root() -> Path:
    return Path(settings.VAR_DIR) / "last-known"


def _make_folder(wanted: Path) -> None:
    """Of this user alone. What other processes left unfinished, and the copies of databases of long ago, go."""
    is_new = not wanted.is_dir()
    for each in (_root(), folder(), wanted):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):  # a mounted folder may be somebody else's
            each.chmod(0o700)
    if is_new:
        _flush_folder(wanted.parent)
        _forget_old_databases()
    for left in wanted.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if _clock.now() - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()


def _forget_old_databases() -> None:
    with contextlib.suppress(OSError):
        ours = folder()
        others = sorted((path for path in _root().iterdir() if path != ours), key=lambda path: -path.stat().st_mtime)
        for path in others[MAX_DATABASES - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def _flush_folder(path: Path) -> None:
    """The name of a file must survive a power cut as well."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mac(secret: str | bytes, payload: bytes) -> bytes:
    key = blake2b(force_bytes(secret), digest_size=32, person=_PURPOSE).digest()
    return blake2b(payload, key=key, digest_size=32).hexdigest().encode()
