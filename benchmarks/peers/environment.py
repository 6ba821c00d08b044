"""A peer's own virtual environment, made from its lock: what peers need is no part of this project's dependencies."""

import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contest import BenchmarkFailed, Progress
from mlserve.settings import env

LOCKS = env.BASE_DIR / "requirements"
_STAMP = "installed"
"""Written last, so that an environment without it is one that was interrupted."""
_PATIENCE_S = 1800.0
"""For some 200 MB of packages over a slow line."""


def installed(peer: str, *, root: Path, progress: Progress, locks: Path = LOCKS) -> Path:
    """The folder of the programs of an environment that has exactly what the peer's lock says.

    Made below `root` at the first call, and anew where the lock or Python has changed. Two processes make it one after
    the other. Raises BenchmarkFailed if it cannot be made, and the next call tries again.
    """
    lock = locks / f"peer-{peer}.lock"
    programs, stamp = root / peer / "bin", root / peer / _STAMP
    wanted = _made_of(lock)
    with _alone(root, peer):
        if not stamp.is_file() or stamp.read_text("utf-8") != wanted:
            progress(f"install {peer} into {root / peer}", 0.0)
            _make(root / peer, lock)
            stamp.write_text(wanted, "utf-8")
    return programs


def _made_of(lock: Path) -> str:
    return f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {sys.version}"


@contextmanager
def _alone(root: Path, peer: str) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{peer}.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise BenchmarkFailed(f"peers: no environment for {peer} can be made in {root}: {error}") from error


def _make(folder: Path, lock: Path) -> None:
    """By uv if it is there, as `make` does, else by pip: each has settings of its own for where packages come from."""
    venv.create(folder, clear=True, symlinks=True)
    python, requirements = str(folder / "bin" / "python"), ("--require-hashes", "-r", str(lock))
    uv = Path(sys.executable).with_name("uv")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check")
    attempts: dict[str, tuple[str, ...]] = {"pip": pip}
    if uv.is_file():
        attempts = {"uv": (str(uv), "pip", "install", "--python", python), **attempts}
    said = []
    for installer, command in attempts.items():
        refusal = _refusal_of([*command, *requirements])
        if refusal is None:
            return
        said += [f"  {installer}: {line}" for line in refusal]
    raise BenchmarkFailed(
        f"peers: {lock.name} cannot be installed:\n{os.linesep.join(said)}\n"
        "needed is a package index that can be reached: pip takes it from PIP_INDEX_URL or pip.conf, uv from "
        "UV_DEFAULT_INDEX or uv.toml"
    )


def _refusal_of(command: list[str]) -> list[str] | None:
    """The last lines of what an installer that failed has said; None if it did not fail."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_PATIENCE_S, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return [f"not done after {_PATIENCE_S:g} s"]
    return done.stdout.splitlines()[-5:] if done.returncode else None
