"""Secrets of this checkout's own, made at first use, so that a laptop needs no configuration."""

import os
import secrets
import tempfile
from pathlib import Path


def local_secret_key(var_dir: Path, name: str = "secret_key") -> str:
    """The key in the file `name` in `var_dir`, created with mode 600 if it is not there.

    Two processes that race get the same key, and a crash leaves either a whole key or none: the file is written
    under another name and linked into place, which fails if somebody else was first.
    """
    path = var_dir / name
    if not path.exists():
        var_dir.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=var_dir, prefix=f".{name}-")  # mode 600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(50))
            os.link(temporary, path)
        except FileExistsError:
            pass  # the other process's key is as good
        finally:
            Path(temporary).unlink()
    return path.read_text(encoding="ascii")
