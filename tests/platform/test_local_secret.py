"""The secret key of a checkout that was never configured."""

import threading
from pathlib import Path

from mlserve.settings.local_secret import local_secret_key


def test_the_key_is_made_once(tmp_path: Path) -> None:
    """Sessions survive a restart because the key does; only its owner can read it."""
    key = local_secret_key(tmp_path / "var")
    assert len(key) >= 50
    assert local_secret_key(tmp_path / "var") == key
    assert (tmp_path / "var" / "secret_key").stat().st_mode & 0o777 == 0o600


def test_racing_processes_get_one_key(tmp_path: Path) -> None:
    """No reader ever sees an empty or a second key, and no temporary file stays."""
    gate = threading.Barrier(16)
    keys: list[str] = []

    def first() -> None:
        gate.wait()
        keys.append(local_secret_key(tmp_path))

    threads = [threading.Thread(target=first) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(keys) == 16
    assert len(set(keys)) == 1
    assert keys[0] != ""
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]
