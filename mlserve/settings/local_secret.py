"""A secret key of this checkout's own, made at first use, so that a laptop needs no configuration."""

import os
import secrets
import tempfile
from pathlib import Path


def local_secret_key(var_dir: Path) -> str:
    """The key in `var_dir/secret_key`, created with mode 600 if it is not there.

    Two processes that race get the same key, and a crash leaves either a whole key or none: the file is written
    under another name and linked into place, which fails if somebody else was first.
    """
    path = var_dir / "secret_key"
    if not path.exists():
        var_dir.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=var_dir, prefix=".secret_key-")  # mode 600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(50))
            os.link(temporary, path)
        except FileExistsError:
            pass  # the other process's key is as good
        finally:
            Path(temporary).unlink()
    return path.read_text(encoding="ascii")
