"""What is remembered about one embedded server: its port and its password, in a file beside its data."""

import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Record:
    port: int
    password: str

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """The record, or None if there is no usable one."""
        found = read_json(path)
        port, password = found.get("port"), found.get("password")
        if not isinstance(port, int) or not isinstance(password, str) or not password:
            return None
        return cls(port=port, password=password)

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def new_password() -> str:
    """192 random bits in letters that need no quoting in a URL, in SQL or in a Valkey configuration."""
    return secrets.token_hex(24)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if the file is missing, torn or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces `path` by `value` in one step, readable by its owner only; a crash leaves the old or the new file."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
