"""The spool's files: who has which, what is in them after whatever happens to disk and folder."""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from pytest_django import Settings

from predictions import delivery, spool
from predictions.spooled import durable_file, locking
from predictions.spooled.drain import Delivered, Fate, Plan, drain
from predictions.spooled.lines import MAX_LINE_BYTES, Line
from predictions.spooled.progress import Progress, save_progress
from tests.predictions.spools import Numbered, drain_with, drained, numbers, python, said


@pytest.fixture(autouse=True)
def folder(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    delivery.stop()  # an earlier test may have left it running
    settings.VAR_DIR = tmp_path
    spool.leave_own_file()
    yield tmp_path / "spool"
    spool.leave_own_file()


def _append(*wanted: int) -> None:
    spool.append([Numbered(number) for number in wanted])


def _only_file() -> Path:
    (path,) = spool.pending_files()
    return path


# --- what is appended is drained ---


def test_what_was_appended_is_drained_in_order(folder: Path) -> None:
    """Once; the file is gone afterwards with all that lay beside it, and what comes later goes to another."""
    _append(1, 2)
    _append(3)
    assert drained() == [b'{"number":1}', b'{"number":2}', b'{"number":3}']
    assert drained() == []
    assert list(folder.iterdir()) == []
    _append(4)
    assert drained() == [b'{"number":4}']


def test_where_each_line_lies_is_said(folder: Path) -> None:
    """So that an answer can be read back."""
    first, second = spool.append([Numbered(1), Numbered(22)])
    (third,) = spool.append([Numbered(3)])
    data = (folder / first.name).read_bytes()
    for location, number in ((first, 1), (second, 22), (third, 3)):
        assert location.name == first.name
        line = data[location.offset : location.offset + location.length]
        assert line == b'{"number":%d}\n' % number


def test_a_drain_that_fails_keeps_what_is_left_and_only_that(folder: Path) -> None:
    """What went well before the failure is not delivered again, by this process or another."""
    _append(*range(6))
    seen: list[bytes] = []

    def fail_later(lines: Sequence[Line]) -> Delivered:
        if len(seen) == 2:
            return Delivered([Fate.SETTLED, Fate.UNTOUCHED], ConnectionError("away"))
        seen.extend(line.data for line in lines)
        return Delivered([Fate.SETTLED] * len(lines))

    with pytest.raises(ConnectionError):
        drain(Plan(deliver=fail_later, max_lines=lambda: 2))
    _append(6)
    assert len(spool.pending_files()) == 1
    spool.leave_own_file()
    assert numbers(drained()) == [3, 4, 5, 6]


def test_drains_that_fail_leave_no_more_files(folder: Path) -> None:
    """The own file is kept, whatever becomes of the attempt: decisions that follow go there."""

    def fail(lines: Sequence[Line]) -> Delivered:
        return Delivered([Fate.UNTOUCHED] * len(lines), ConnectionError("read-only"))

    for number in range(20):
        _append(number)
        with pytest.raises(ConnectionError):
            drain(Plan(deliver=fail, max_lines=lambda: 200))
    assert len(spool.pending_files()) == 1
    assert numbers(drained()) == [*range(20)]


def test_what_is_held_keeps_nothing_else(folder: Path) -> None:
    """It is offered again after everything else, and its file stays until it is taken."""
    _append(*range(6))
    held = {b'{"number":1}', b'{"number":4}'}
    hold = lambda line: Fate.HELD if line in held else Fate.SETTLED  # noqa: E731
    assert numbers(drain_with(hold, max_lines=2)) == [0, 1, 2, 3, 4, 5, 1, 4]
    _append(6)
    assert numbers(drain_with(hold)) == [6, 1, 4]
    held.clear()
    spool.leave_own_file()
    assert numbers(drain_with(hold)) == [1, 4]
    assert list(folder.iterdir()) == []


def test_what_finds_no_room_is_not_offered_until_there_is(folder: Path) -> None:
    """PostgreSQL need not refuse it once a second."""
    _append(1, 2)
    full = lambda line: Fate.NO_ROOM if line == b'{"number":1}' else Fate.SETTLED  # noqa: E731
    assert numbers(drain_with(full)) == [1, 2]
    assert drain_with(full) == []
    offered: list[bytes] = []

    def take(lines: Sequence[Line]) -> Delivered:
        offered.extend(line.data for line in lines)
        return Delivered([Fate.SETTLED] * len(lines))

    drain(Plan(deliver=take, max_lines=lambda: 200, retry_refused=True))
    assert numbers(offered) == [1]
    assert list(folder.iterdir()) == []


def test_progress_that_is_damaged_or_of_another_file_is_none(folder: Path) -> None:
    """Delivering twice does no harm, losing does."""
    _append(1, 2)
    spool.leave_own_file()
    hold = lambda line: Fate.HELD if line == b'{"number":2}' else Fate.SETTLED  # noqa: E731
    drain_with(hold)
    (beside,) = folder.glob("*.progress")
    good = beside.read_bytes()
    beside.write_bytes(good[:-3])
    assert numbers(drain_with(hold))[:2] == [1, 2]
    path = _only_file()
    shutil.copy(path, folder / "copy")
    (folder / "copy").replace(path)
    assert numbers(drained()) == [1, 2]


def test_a_round_may_be_over_before_the_end(folder: Path) -> None:
    """The rest is the next round's: a process that shall end does not wait for a whole outage's decisions."""
    _append(*range(4))
    taken: list[bytes] = []

    def take(lines: Sequence[Line]) -> Delivered:
        taken.extend(line.data for line in lines)
        return Delivered([Fate.SETTLED] * len(lines))

    drain(Plan(deliver=take, max_lines=lambda: 1, is_over=lambda: len(taken) >= 2))
    assert numbers(taken) == [0, 1]
    assert numbers(drained()) == [2, 3]


def test_a_file_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then another one begins, and both are drained in their order."""
    monkeypatch.setattr(spool, "MAX_FILE_BYTES", 40)
    for number in range(7):
        _append(number)
    sizes = [path.stat().st_size for path in spool.pending_files()]
    assert len(sizes) == 3 and max(sizes) <= 40
    assert sorted(numbers(drained())) == [*range(7)]
    assert list(folder.iterdir()) == []


# --- lines ---


def test_a_torn_last_line_is_left_out(folder: Path) -> None:
    """It was never acknowledged; the whole lines before it were."""
    _append(1)
    spool.leave_own_file()
    with _only_file().open("ab") as file:
        file.write(b'{"numb')
    assert drained() == [b'{"number":1}']
    assert spool.pending_files() == []


def test_a_line_of_any_length_costs_bounded_memory(folder: Path) -> None:
    """Its two ends and its digest are handed on, and what follows is delivered: 600 MB of zeros in less memory."""
    _append(1)
    spool.leave_own_file()
    with _only_file().open("r+b") as file:
        file.seek(600 << 20)
        file.write(b'the end\n{"number":2}\n')
    code = """
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
offered = drain_with(lambda line: "settled")
print([len(line) for line in offered], offered[1][-7:], offered[2])
"""
    process = python(code, folder.parent)
    output, _ = process.communicate()
    assert output.split("\n")[-2] == f"[12, {2 * (64 << 10) - 1}, 12] b'the end' b'{{\"number\":2}}'"
    assert spool.pending_files() == []


def test_an_entry_that_no_reader_would_take_is_not_acknowledged(folder: Path) -> None:
    """Whoever reads the spool takes a line of that length for garbage."""
    with pytest.raises(spool.SpoolFailed, match="bytes"):
        spool.append([Numbered(1), {"a": "x" * MAX_LINE_BYTES}])  # type: ignore[list-item]
    assert spool.pending_files() == []


# --- the race between opening and locking ---


Wait = Callable[[], object]
StopAtLock = Callable[[str], tuple[Wait, Wait]]


@pytest.fixture
def stop_at_lock(monkeypatch: pytest.MonkeyPatch) -> StopAtLock:
    """The named thread stops before its first lock: returns what waits for that, and what lets it go on."""

    def arm(name: str) -> tuple[Wait, Wait]:
        reached, go, real, used = threading.Barrier(2), threading.Barrier(2), fcntl.flock, threading.Event()

        def flock(descriptor: int, operation: int) -> None:
            if threading.current_thread().name == name and not used.is_set():
                used.set()
                reached.wait(60)
                go.wait(60)
            real(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        return partial(reached.wait, 60), partial(go.wait, 10)

    return arm


def test_a_file_that_a_drain_removes_before_it_is_locked_is_not_written(folder: Path, stop_at_lock: StopAtLock) -> None:
    """The drain finds it empty and unlinks it; what is appended goes to another one."""
    reached, go = stop_at_lock("appending")
    appending = threading.Thread(target=_append, args=(7,), name="appending")
    appending.start()
    reached()
    process = python("print(numbers(drained()), len(list(spool.folder().iterdir())))", folder.parent)
    assert said(process) == "[] 0"
    process.wait()
    go()
    appending.join()
    assert numbers(drained()) == [7]


def test_a_file_that_a_drain_has_locked_before_its_writer_is_left_to_it(folder: Path, stop_at_lock: StopAtLock) -> None:
    """The writer does not wait for the drain's end, which may be long."""
    reached, go = stop_at_lock("appending")
    appending = threading.Thread(target=_append, args=(7,), name="appending")
    appending.start()
    reached()
    (empty,) = spool.pending_files()
    descriptor = locking.open_locked(empty)
    assert descriptor is not None
    go()
    appending.join(60)
    assert not appending.is_alive()
    assert len(spool.pending_files()) == 2
    os.close(descriptor)
    assert numbers(drained()) == [7]


def test_a_drain_that_comes_late_leaves_another_file_alone(folder: Path, stop_at_lock: StopAtLock) -> None:
    """Between its opening and locking the file was delivered, and another one stands at its path."""
    _append(1)
    spool.leave_own_file()
    path = _only_file()
    reached, go = stop_at_lock("draining")
    found: list[list[bytes]] = []
    draining = threading.Thread(target=lambda: found.append(drained()), name="draining")
    draining.start()
    reached()
    assert said(python("print(numbers(drained()))", folder.parent)) == "[1]"
    path.write_bytes(b'{"number":2}\n')
    go()
    draining.join()
    assert numbers(found[0]) in ([], [2])  # its second pass looks again
    assert path.exists() == (found[0] == [])
    assert numbers([*found[0], *drained()]) == [2]


def test_what_is_appended_while_a_drain_goes_on_stays(folder: Path) -> None:
    """The file is removed only if the drain has seen all of it."""
    _append(1)

    def append_more(line: bytes) -> Fate:
        if line == b'{"number":1}':
            _append(2)
        return Fate.SETTLED

    assert numbers(drain_with(append_more)) == [1]
    assert numbers(drained()) == [2]


def test_a_file_that_is_left_while_a_drain_goes_on_stays_if_it_grew(folder: Path) -> None:
    """The drain keeps the lock for as long as it reads; what was appended meanwhile is the next round's."""
    _append(1)

    def append_and_leave(line: bytes) -> Fate:
        if line == b'{"number":1}':
            _append(2)
            spool.leave_own_file()
        return Fate.SETTLED

    assert numbers(drain_with(append_and_leave))[0] == 1
    assert 2 in numbers([*drained()]) or spool.pending_files() == []


# --- files and folder are changed by hand ---


def test_an_own_file_that_was_deleted_is_saved_out_of_the_open_file(folder: Path) -> None:
    """What was acknowledged in it stands in another one, with the next append or the next drain."""
    _append(1)
    _only_file().unlink()
    _append(2)
    assert numbers(drained()) == [1, 2]
    _append(3)
    _only_file().unlink()
    spool.keep_own_file()
    assert numbers(drained()) == [3]


def test_a_folder_that_was_removed_or_replaced_is_made_again(folder: Path) -> None:
    """With what the removed file had; one that was only moved is its mover's matter."""
    _append(1)
    shutil.rmtree(folder)
    _append(2)
    assert numbers(drained()) == [1, 2]
    _append(3)
    folder.rename(folder.parent / "moved")
    _append(4)
    assert numbers(drained()) == [4]
    assert [path.read_bytes() for path in (folder.parent / "moved").iterdir()] == [b'{"number":3}\n']


def test_a_file_deleted_while_it_is_written_is_noticed_before_the_acknowledgement(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line in a file without a name is lost however well it is flushed."""
    _append(1)
    real = os.fsync

    def delete_and_sync(descriptor: int) -> None:
        with monkeypatch.context() as once:
            once.setattr(os, "fsync", real)
            real(descriptor)
            _only_file().unlink()
        monkeypatch.setattr(os, "fsync", real)

    monkeypatch.setattr(os, "fsync", delete_and_sync)
    _append(2)
    assert numbers(drained()) == [1, 2]


def test_a_deleted_file_is_kept_open_until_the_disk_takes_its_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at that moment costs nothing that was acknowledged."""
    _append(1)
    _only_file().unlink()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", _failing_with(errno.ENOSPC))
        with pytest.raises(spool.SpoolFailed):
            _append(2)
    _append(3)
    assert numbers(drained()) == [1, 3]


def test_what_is_no_plain_file_is_left_alone(folder: Path) -> None:
    """A pipe would be waited for, a link leads to somebody else's file."""
    folder.mkdir()
    other = folder.parent / "other"
    other.write_bytes(b'{"number":1}\n')
    (folder / "decisions-1-a.jsonl").symlink_to(other)
    os.mkfifo(folder / "decisions-1-b.jsonl")
    (folder / "decisions-1-c.jsonl").mkdir()
    assert spool.pending_files() == []
    assert drained() == []
    assert other.exists()


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    """To a disk that outlives the host, say."""
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")
    _append(1)
    assert len(list((folder.parent / "elsewhere").iterdir())) == 1
    assert numbers(drained()) == [1]


def test_a_file_that_cannot_be_read_keeps_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is somebody else's, or its disk is broken there."""
    monkeypatch.setattr(spool, "MAX_FILE_BYTES", 1)
    _append(1)
    unreadable = _only_file()
    _append(2)
    spool.leave_own_file()
    real = os.open

    def refuse(path: os.PathLike[str], *arguments: int) -> int:
        if Path(path) == unreadable:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments)

    with monkeypatch.context() as denied:
        denied.setattr(os, "open", refuse)
        assert numbers(drained()) == [2]
    assert numbers(drained()) == [1]


def test_what_a_killed_drain_left_beside_a_file_is_tidied(folder: Path) -> None:
    """And nothing that belongs to a file that is there."""
    _append(1)
    path = _only_file()
    with path.open("rb") as file:
        save_progress(folder / "decisions-1-gone.jsonl", file.fileno(), Progress())
    durable_file.mark_good_length(folder / "decisions-1-gone.jsonl", 5)
    drain_with(lambda _: Fate.HELD)
    assert {each.suffix for each in folder.iterdir()} == {".jsonl", ".progress"}
    assert {each.stem for each in folder.iterdir()} == {path.stem}


# --- the disk fails ---


def _failing_with(code: int) -> Callable[..., None]:
    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
def test_what_could_not_be_written_does_not_stand(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """It is an error for the client (503, Retry-After), is never delivered, and the next append works again."""
    _append(1)
    with monkeypatch.context() as broken:
        broken.setattr(os, call, _failing_with(code))
        with pytest.raises(spool.SpoolFailed, match=os.strerror(code)) as failed:
            _append(2, 3)
    assert failed.value.retry_after_s == 5
    _append(4)
    assert numbers(drained()) == [1, 4]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["mark", "memory"])
def test_what_cannot_even_be_cut_off_is_not_delivered(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The good length is written beside the file, for others; if that fails too, the file stays locked and its
    process knows."""
    _append(1)
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", _failing_with(errno.EIO))
        if name == "mark":
            calls = iter([_failing_with(errno.EIO)])
            real = os.fsync
            broken.setattr(os, "fsync", lambda descriptor: next(calls, real)(descriptor))
        else:
            broken.setattr(os, "fsync", _failing_with(errno.EIO))
            broken.setattr(durable_file, "mark_good_length", lambda *_: None)
        with pytest.raises(spool.SpoolFailed):
            _append(2, 3)
        if name == "memory":
            assert said(python("print(numbers(drained()))", folder.parent)) == "[]"
    code = "print(numbers(drained()))"
    _append(4)
    if name == "mark":
        spool.leave_own_file()
        assert sorted(msg for msg in said(python(code, folder.parent)).strip("[]").split(", ")) == ["1", "4"]
    else:
        spool.keep_own_file()
        assert sorted(numbers(drained())) == [1, 4]
    assert list(folder.iterdir()) == []


_LIMITED = """
spool.append([Numbered(1)])
size = 20
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
try:
    spool.append([Numbered(2), Numbered(3)])
except spool.SpoolFailed as error:
    print(error.detail)
print([path.stat().st_size for path in spool.pending_files()])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append([Numbered(4)])
print(numbers(drained()))
"""


def test_a_write_that_the_kernel_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    """A real limit: a whole line of two was on the disk when the kernel refused the rest (EFBIG)."""
    output, _ = python(_LIMITED, tmp_path).communicate()
    detail, sizes, lines = output.splitlines()[-3:]
    assert "the spool cannot be written: File too large" in detail
    assert (sizes, lines) == ("[13]", "[1, 4]")


_TOO_MANY_OPEN = """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for spare in (0, 1):
    for _ in range(spare):
        os.close(held.pop())
    try:
        spool.append([Numbered(2)])
    except spool.SpoolFailed as error:
        print(error.detail)
for descriptor in held:
    os.close(descriptor)
spool.append([Numbered(3)])
print(len(spool.pending_files()), numbers(drained()))
"""


def test_too_many_open_files_leave_no_file_behind(tmp_path: Path) -> None:
    """Whichever of the files that an append needs cannot be opened: no decision, and none of half-made files."""
    output, _ = python(_TOO_MANY_OPEN, tmp_path).communicate()
    *errors, end = output.splitlines()
    assert len(errors) == 2 and all("Too many open files" in error for error in errors)
    assert end == "1 [3]"


def test_a_folder_that_cannot_be_written_is_an_error_with_a_reason(tmp_path: Path) -> None:
    """A file stands where it should be; once that is gone the next append works."""
    (tmp_path / "spool").write_bytes(b"a file stands in the way")
    with pytest.raises(spool.SpoolFailed, match="Postgres does not answer and the spool cannot be written"):
        _append(1)
    (tmp_path / "spool").unlink()
    _append(2)
    assert numbers(drained()) == [2]


def test_a_file_that_the_file_server_has_forgotten_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESTALE, on NFS: the append goes to a new one."""
    _append(1)
    real, codes = os.pwrite, iter([errno.ESTALE])

    def stale_once(*arguments: object) -> int:
        for code in codes:
            raise OSError(code, os.strerror(code))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", stale_once)
    _append(2)
    assert numbers(drained()) == [1, 2]


# --- other processes ---


def test_what_a_killed_process_left_is_drained_by_another(tmp_path: Path) -> None:
    """It was flushed before `append` returned."""
    process = python("spool.append([Numbered(7)]); os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert process.wait() == -9
    assert drained() == [b'{"number":7}']


_HOLDING = "spool.append([Numbered(8)]); print('held', flush=True); sys.stdin.read()"


def test_the_file_of_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    """Until that process is gone."""
    with python(_HOLDING, tmp_path) as process:
        assert said(process) == "held"
        assert drained() == []
        process.kill()
    assert drained() == [b'{"number":8}']


def test_a_childs_copy_of_the_file_is_no_claim_to_it(folder: Path) -> None:
    """After a fork the parent goes on in its file, and the child has one of its own."""
    _append(1)
    if (child := os.fork()) == 0:
        _append(2)
        os._exit(0 if len(spool.pending_files()) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    _append(3)
    assert len(spool.pending_files()) == 2
    assert sorted(numbers(drained())) == [1, 2, 3]


def test_processes_that_die_again_and_again_leave_one_file(tmp_path: Path) -> None:
    """Each takes over what the last one left, a torn end cut off."""
    code = """
spool.append([Numbered(int(sys.argv[2]))])
os.pwrite(spool._file.descriptor, b'{"numb', spool._file.length)
os.kill(os.getpid(), signal.SIGKILL)
"""
    for number in range(4):
        python(code, tmp_path, Path(str(number))).wait()
    assert len(spool.pending_files()) == 1
    assert numbers(drained()) == [0, 1, 2, 3]


_DRAINING = """
print('ready', flush=True)
sys.stdin.readline()
out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
def take(line):
    os.write(out, line + b'\\n')
    return "settled"
drain_with(take, max_lines=1)
"""


def test_two_processes_that_drain_at_once_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is delivered, and none twice."""
    monkeypatch.setattr(spool, "MAX_FILE_BYTES", 30)
    for number in range(30):
        _append(number, 100 + number)
    spool.leave_own_file()
    assert len(spool.pending_files()) == 30
    out = tmp_path / "out"
    out.touch()
    processes = [python(_DRAINING, tmp_path, out) for _ in range(2)]
    for process in processes:
        assert said(process) == "ready"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert sorted(numbers(out.read_bytes().splitlines())) == [*range(30), *range(100, 130)]
    assert spool.pending_files() == []


def test_the_spool_is_for_its_owner_only(folder: Path) -> None:
    """It names customers."""
    folder.mkdir(mode=0o755)
    _append(1)
    drain_with(lambda _: Fate.HELD)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
