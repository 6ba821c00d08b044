"""What the demo remembers between two runs, and what keeps two of them apart: `var/demo/`."""

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from mlserve.errors import ErrorCode, MlserveError

HOST = "127.0.0.1"


class DemoRefused(MlserveError):
    """The demo cannot start as asked; the message says what to do."""

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_PARAMETER


class DemoPlace:
    """The folder with the key, the password and the lock."""

    def __init__(self, var_dir: Path) -> None:
        self.folder = var_dir / "demo"
        self.log_dir = var_dir / "log"
        self.record = self.folder / "children.json"

    @contextmanager
    def only_demo(self) -> Iterator[None]:
        """Raises DemoRefused if another demo of this folder runs. The lock goes with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise DemoRefused(
                    f"a demo of this checkout already runs (process {pid}); stop it with Ctrl-C where it runs, "
                    f"or with: kill {pid}"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def secret(self, name: str) -> str:
        """What was remembered under this name, or nothing."""
        try:
            return (self.folder / name).read_text("ascii").strip()
        except FileNotFoundError:
            return ""

    def remember_secret(self, name: str, value: str) -> None:
        """Readable by this user only."""
        self._write(name, value + "\n")

    def data_note(self) -> dict[str, str]:
        """What `remember_data` was told last; empty if nothing."""
        try:
            note: dict[str, str] = json.loads((self.folder / "data.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return note

    def remember_data(self, note: dict[str, str]) -> None:
        self._write("data.json", json.dumps(note) + "\n")

    def _write(self, name: str, text: str) -> None:
        temporary = self.folder / f".{name}-{secrets.token_hex(4)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(self.folder / name)


def free_port(wanted: int) -> int:
    """`wanted`, or any free one for 0. Raises DemoRefused if somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise DemoRefused(
                f"port {wanted} of {HOST} cannot be had ({error.strerror}); choose another: make demo PORT={wanted + 1}"
            ) from None
        port: int = probe.getsockname()[1]
        return port


def wipe_metric_files(folder: Path) -> None:
    """Forgets the counters of former processes; those that this process has open stay."""
    for path in folder.glob("*.db"):
        if not path.stem.endswith(f"_{os.getpid()}"):
            path.unlink(missing_ok=True)
