import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from pytest_django import Settings

from mlserve.settings.base import BASE_DIR
from predictions import spool


class Line(msgspec.Struct):
    number: int


@pytest.fixture(autouse=True)
def folder(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    settings.VAR_DIR = tmp_path
    spool.leave_own_file()
    yield tmp_path / "spool"
    spool.leave_own_file()


def _drained() -> list[bytes]:
    lines: list[bytes] = []
    spool.drain(lines.extend)
    return lines


def test_what_was_appended_is_drained_in_order(folder: Path) -> None:
    """Once; the file is gone afterwards, and what comes later goes to another."""
    spool.append([Line(1), Line(2)])
    spool.append([Line(3)])
    assert _drained() == [b'{"number":1}', b'{"number":2}', b'{"number":3}']
    assert _drained() == []
    assert list(folder.iterdir()) == []
    spool.append([Line(4)])
    assert _drained() == [b'{"number":4}']


def test_a_drain_that_fails_keeps_everything(folder: Path) -> None:
    """Also what went well before the failure: delivering twice does no harm, losing does."""
    spool.append([Line(number) for number in range(5)])
    seen: list[bytes] = []

    def fail_later(lines: Sequence[bytes]) -> None:
        if seen:
            raise ConnectionError
        seen.extend(lines)

    with pytest.raises(ConnectionError):
        spool.drain(fail_later, lines_at_once=2)
    assert len(_drained()) == 5


def test_a_torn_last_line_is_left_out(folder: Path) -> None:
    """It was never acknowledged; the whole lines before it were."""
    spool.append([Line(1)])
    spool.leave_own_file()
    (path,) = spool.pending_files()
    with path.open("ab") as file:
        file.write(b'{"numb')
    assert _drained() == [b'{"number":1}']
    assert spool.pending_files() == []


def test_a_write_that_fails_is_said_and_tears_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next entries go to a new file, so that they cannot stand behind half a line."""
    spool.append([Line(1)])

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        with pytest.raises(spool.SpoolFailed, match="No space left on device"):
            spool.append([Line(2)])
    (first,) = spool.pending_files()
    with first.open("ab") as file:
        file.write(b'{"half')
    spool.append([Line(3)])
    assert set(_drained()) >= {b'{"number":1}', b'{"number":3}'}


def test_a_folder_that_cannot_be_written_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"a file stands in the way")
    with pytest.raises(spool.SpoolFailed, match="Postgres does not answer and the spool cannot be written"):
        spool.append([Line(1)])


_HEAD = f"""
import os, sys, pathlib, signal
sys.path.insert(0, {str(BASE_DIR)!r})
from django.conf import settings
settings.configure(VAR_DIR=sys.argv[1])
import msgspec
from predictions import spool
class Line(msgspec.Struct):
    number: int
"""
_KILLED = _HEAD + "spool.append([Line(7)]); os.kill(os.getpid(), signal.SIGKILL)"
_HOLDING = _HEAD + "spool.append([Line(8)]); print('held', flush=True); sys.stdin.read()"
_DRAINING = f"""{_HEAD}
print('ready', flush=True)
sys.stdin.readline()
out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
spool.drain(lambda lines: os.write(out, b''.join(line + b'\\n' for line in lines)), lines_at_once=1)
"""


def _python(code: str, *arguments: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_what_a_killed_process_left_is_drained_by_another(tmp_path: Path) -> None:
    """It was flushed before `append` returned."""
    assert _python(_KILLED, tmp_path).wait() == -9
    assert _drained() == [b'{"number":7}']


def test_the_file_of_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    """Until that process is gone."""
    with _python(_HOLDING, tmp_path) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert _drained() == []
        process.kill()
    assert _drained() == [b'{"number":8}']


def test_two_processes_that_drain_at_once_share_the_work(tmp_path: Path) -> None:
    """Every line is delivered, and none twice."""
    for number in range(30):
        spool.append([Line(number), Line(100 + number)])
        spool.leave_own_file()
    out = tmp_path / "out"
    out.touch()
    processes = [_python(_DRAINING, tmp_path, out) for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    delivered = sorted(msgspec.json.decode(line, type=Line).number for line in out.read_bytes().splitlines())
    assert delivered == [*range(30), *range(100, 130)]
    assert spool.pending_files() == []


def test_the_spool_is_for_its_owner_only(folder: Path) -> None:
    """It names customers; what was made when others could read it is closed to them."""
    folder.mkdir(mode=0o755)
    (folder / "refused.jsonl").touch(0o644)
    spool.append([Line(1)])
    spool.set_aside(b"{}")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
