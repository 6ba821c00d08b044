"""What the relay cannot continue: every copy is void then, and nothing is promised that may be wrong."""

import pytest
import redis

from features import journal as journal_module
from features.journal import Incarnation, Journal, KeptPartition, Span
from features.relay import Lost, judge
from mlserve.cache.keys import names_of
from mlserve.cache.watermark import Watermark
from tests.features.relay.conftest import (
    GROUP,
    WM,
    copy_of,
    execute,
    fetch,
    hold,
    is_tombstone,
    make_relay,
    mark_in,
    write,
)


def test_a_lost_watermark_voids_all_copies(empty: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """FLUSHALL: a new epoch, durable in Postgres, before the watermark says it."""
    relay = make_relay()
    relay.tick()
    before = mark_in(empty).epoch
    empty.flushall()
    relay.tick()  # is refused, and learns why
    relay.tick()
    assert mark_in(empty).epoch > before
    assert fetch("SELECT epoch FROM features_cachepartition WHERE partition = 0") == [(mark_in(empty).epoch,)]
    write("m1")
    relay.tick()
    assert copy_of(empty, "m1") is not None, "it goes on from there"


@pytest.mark.parametrize("foreign", [b"", b"nonsense", b"1|4294967296:4294967296:|1700000000.000000|x"])
def test_an_unreadable_watermark_voids_all_copies(empty: redis.Redis, foreign: bytes) -> None:
    """Whatever somebody put there, also a snapshot that Postgres would not read."""
    relay = make_relay()
    relay.tick()
    before = mark_in(empty).epoch
    empty.set(WM, foreign)
    relay.tick()
    relay.tick()
    assert mark_in(empty).epoch > before


def test_an_older_history_of_the_cache_is_told_again(empty: redis.Redis) -> None:
    """A failover that lost acknowledged writes: watermark and copies are old, and the span between is replayed."""
    relay = make_relay()
    relay.tick()
    versions = {name: write(name) for name in ("m1", "m2")}
    old_mark = empty.get(WM)
    old_copies = {name: hold(empty, name, version - 1) for name, version in versions.items()}
    relay.tick()
    versions["m2"] = write("m2")
    relay.tick()
    epoch = mark_in(empty).epoch

    assert old_mark is not None
    empty.flushall()
    empty.set(WM, old_mark)
    for name, record in old_copies.items():
        empty.hset(names_of("merchant", name, 1).record, GROUP, record)
    relay.tick()
    relay.tick()

    assert mark_in(empty).epoch == epoch, "no copy but those of the span is lost"
    assert all(is_tombstone(empty, name, version) for name, version in versions.items())


def test_a_trimmed_journal_voids_all_copies(empty: redis.Redis) -> None:
    """A watermark that came back from long ago asks for lines that are gone."""
    relay = make_relay()
    relay.tick()
    old = mark_in(empty)
    write("m1")
    relay.tick()
    assert mark_in(empty).epoch == old.epoch
    execute("DELETE FROM features_journal")
    ((last,),) = fetch("SELECT pg_current_xact_id()::text")
    execute("UPDATE features_cachepartition SET trimmed = %s::xid8", str(int(last) - 1))
    empty.set(WM, old.pack())
    relay.tick()
    relay.tick()
    assert mark_in(empty).epoch > old.epoch


def test_another_incarnation_of_postgres_voids_all_copies(empty: redis.Redis) -> None:
    """A promoted standby: what was lost may be in the cache, so its versions are never given again."""
    relay = make_relay()
    relay.tick()
    before, version = mark_in(empty).epoch, write("m1")
    execute("UPDATE features_cachepartition SET timeline = timeline + 1")
    relay.tick()
    assert mark_in(empty).epoch == before + 1
    assert write("m1") > version + journal_module.VERSIONS_SKIPPED
    relay.tick()
    assert mark_in(empty).epoch == before + 1


def test_a_watermark_of_the_future_voids_all_copies(empty: redis.Redis) -> None:
    """A database that was restored has not seen what the cache was told."""
    relay = make_relay()
    relay.tick()
    mark = mark_in(empty)
    empty.set(WM, Watermark(mark.epoch + 5, "900000000:900000000:", mark.safe_time, "other").pack())
    relay.tick()
    relay.tick()
    assert mark_in(empty).epoch > mark.epoch + 5


def test_more_changes_than_are_worth_telling_void_all_copies(
    empty: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and time of a tick are bounded."""
    monkeypatch.setattr(journal_module, "MOST_CHANGES", 3)
    relay = make_relay()
    relay.tick()
    before = mark_in(empty).epoch
    for number in range(3):
        write(f"m{number}")
    relay.tick()
    assert (mark_in(empty).epoch, relay.tally.keys) == (before, 3)
    for number in range(4):
        write(f"m{number}")
    relay.tick()
    assert (mark_in(empty).epoch, relay.tally.keys) == (before + 1, 3)


def test_an_epoch_that_somebody_raised_is_taken_over(empty: redis.Redis) -> None:
    """TRUNCATE does that, and an operator can."""
    relay = make_relay()
    relay.tick()
    before = mark_in(empty).epoch
    execute("TRUNCATE features_featurerow")
    relay.tick()
    assert mark_in(empty).epoch == before + 1


def test_an_epoch_is_raised_once_by_two_relays(empty: redis.Redis) -> None:
    """Whoever comes second finds it raised."""
    journal = Journal()
    make_relay().tick()
    kept = journal.kept()
    first = kept.partitions[0].epoch
    journal.raise_epochs({0: first}, kept)
    journal.raise_epochs({0: first}, kept)
    assert journal.kept().partitions[0].epoch == first + 1
    journal.close()


_HERE = Incarnation(1, 1)


_HELD = Watermark(3, "100:110:105", 1.0, "r")


@pytest.mark.parametrize(
    ("why", "held", "kept", "span"),
    [
        (None, _HELD, KeptPartition(3, 99, _HERE), Span("120:120:", 2.0, ())),
        (None, _HELD, KeptPartition(4, 99, _HERE), Span("120:120:", 2.0, ())),
        (Lost.NEW_PARTITION, _HELD, None, Span("120:120:", 2.0, ())),
        (Lost.OTHER_POSTGRES, _HELD, KeptPartition(3, 99, Incarnation(1, 2)), Span("120:120:", 2.0, ())),
        (Lost.OTHER_POSTGRES, _HELD, KeptPartition(2, 99, _HERE), Span("120:120:", 2.0, ())),
        (Lost.OTHER_POSTGRES, _HELD, KeptPartition(3, 99, _HERE), Span("109:109:", 2.0, ())),
        (Lost.NO_WATERMARK, None, KeptPartition(3, 99, _HERE), None),
        (Lost.JOURNAL_TRIMMED, _HELD, KeptPartition(3, 100, _HERE), Span("120:120:", 2.0, ())),
        (Lost.TOO_MANY_CHANGES, _HELD, KeptPartition(3, 99, _HERE), Span("120:120:", 2.0, None)),
    ],
)
def test_a_span_continues_a_watermark_or_does_not(
    why: Lost | None, held: Watermark | None, kept: KeptPartition | None, span: Span | None
) -> None:
    """By epoch, incarnation, trimmed lines and size."""
    assert judge(held, kept, _HERE, span) is why
