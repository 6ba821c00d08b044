"""What a client has noted is read back, whatever became of the client."""

from pathlib import Path

from features.checker.history import (
    RECORD_BYTES,
    Event,
    Read,
    ReadLog,
    Volume,
    Way,
    WriteLog,
    read_files,
    reads_of,
    volume,
    write_events,
)

READ = Read(65_535, 3, 63, 2**32 - 1, 10, 20, 2**63 - 1, 2**64 - 1)


def test_reads_come_back_in_order(tmp_path: Path) -> None:
    """With the process's number and by how much its clock was wrong."""
    buffer = ReadLog(tmp_path / "a.reads", 9, -50_000).buffer()
    reads = [READ._replace(start_ns=start) for start in range(1_000)]
    for read in reads:
        buffer.note(read)
    buffer.flush()
    (file,) = read_files(tmp_path)
    assert (file.process, file.clock_offset_ns) == (9, -50_000_000)
    assert list(reads_of(file)) == reads


def test_a_torn_record_is_left_out(tmp_path: Path) -> None:
    """A client that is killed in the middle of a write loses that record; those before stay."""
    path = tmp_path / "a.reads"
    buffer = ReadLog(path, 1).buffer()
    for _ in range(2):
        buffer.note(READ)
    buffer.flush()
    path.write_bytes(path.read_bytes()[: -RECORD_BYTES // 2])
    assert list(reads_of(read_files(tmp_path)[0])) == [READ]


def test_a_file_that_was_never_begun_is_empty(tmp_path: Path) -> None:
    """Its client was killed before it had opened it."""
    (tmp_path / "a.reads").touch()
    assert [list(reads_of(file)) for file in read_files(tmp_path)] == [[]]


def test_an_event_of_a_write_is_there_at_once(tmp_path: Path) -> None:
    """It is with the kernel before the client goes on to commit."""
    log = WriteLog(tmp_path / "a.writes", 1)
    log.note(Event.SENT, Way.SQL, key=3, session=4, number=5, version=6, content=7)
    (event,) = write_events(tmp_path)
    assert (event.event, event.way, event.key, event.session, event.number) == (Event.SENT, Way.SQL, 3, 4, 5)
    assert (event.version, event.content) == (6, 7)
    assert volume(tmp_path) == Volume(reads=0, write_events=1)
