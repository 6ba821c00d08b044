"""Each figure of the verdict, on histories in which it must count and on those in which it must not."""

import pytest

from features.checker.history import Flag
from features.checker.verdict import GATED
from mlserve.cache.outcome import Tier
from tests.features.checker.histories import judged, read, rolled_back, unanswered, write

FIRST = write(10, sent=0, acked=1)
SECOND = write(20, sent=100, acked=110)


def test_a_history_without_faults_breaks_nothing() -> None:
    """Reads of the newest version, before and after a write."""
    verdict = judged([FIRST, SECOND], [read(10, start=50), read(20, start=120), read(20, start=5_000)])
    assert verdict.violations == {}
    assert (verdict.reads, verdict.writes, verdict.stale_reads) == (3, 2, {})


def test_a_stale_read_is_counted_by_tier_and_flag() -> None:
    """Stale is what missed a write that had been acknowledged; what was still under way could be missed."""
    reads = [
        read(10, start=105),
        read(10, start=150, tier=Tier.L1),
        read(10, start=160, tier=Tier.L2),
        read(10, start=170, tier=Tier.L2, flags=Flag.STALE),
    ]
    verdict = judged([FIRST, SECOND], reads)
    assert verdict.stale_reads == {"l1": 1, "l2": 1, "l2 flagged": 1}
    assert verdict.violations == {}


def test_staleness_lies_between_acknowledgement_and_commit() -> None:
    """At least since the acknowledgement, at most since the commit was sent; flagged reads do not count."""
    verdict = judged([FIRST, SECOND], [read(10, start=310), read(10, start=900, flags=Flag.STALE)])
    assert verdict.staleness_s.max == pytest.approx(0.2)
    assert verdict.upper_staleness_s.max == pytest.approx(0.21)


def test_percentiles_are_of_stale_reads() -> None:
    """The smallest value that so large a share does not exceed."""
    reads = [read(10, start=110 + ms) for ms in range(1, 101)] + [read(20, start=500)] * 900
    found = judged([FIRST, SECOND], reads).staleness_s
    assert (found.p50, found.p99, found.p999, found.max) == pytest.approx((0.05, 0.099, 0.1, 0.1))


def test_over_the_bound_is_an_unflagged_read_that_missed_an_old_write() -> None:
    """Exactly as old as the bound is allowed; a nanosecond more is not, unless it is flagged."""
    allowed, late = read(10, start=1_110), read(10, start=1_111)
    assert judged([FIRST, SECOND], [allowed]).over_bound == 0
    assert judged([FIRST, SECOND], [late]).over_bound == 1
    assert judged([FIRST, SECOND], [read(10, start=9_000, flags=Flag.STALE)]).over_bound == 0
    (example,) = judged([FIRST, SECOND], [late]).examples
    assert (example.figure, example.version, example.tier) == ("over_bound", 10, "l2")


def test_a_wrong_clock_widens_the_bound_of_its_process() -> None:
    """By as much as it is wrong, in either direction."""
    late = read(10, start=1_140)
    for offset_s in (0.05, -0.05):
        assert judged([FIRST, SECOND], [late], clock_offset_s=offset_s).over_bound == 0
    assert judged([FIRST, SECOND], [late], clock_offset_s=0.02).over_bound == 1


def test_a_write_whose_writer_died_is_told_by_the_next_one() -> None:
    """It was visible, at the latest, when a later version of its key was acknowledged."""
    dead = write(20, sent=100, acked=None)
    later = write(30, sent=400, acked=410)
    alone = judged([FIRST, dead], [read(10, start=5_000)])
    assert (alone.over_bound, alone.in_doubt, alone.stale_reads) == (0, 1, {})
    told = judged([FIRST, dead, later], [read(10, start=1_411)])
    assert told.over_bound == 1
    assert judged([FIRST, dead, later], [read(10, start=1_409)]).over_bound == 0


def test_an_id_without_a_row_is_older_than_its_first_version() -> None:
    """A negative copy has version 0."""
    assert judged([FIRST], [read(0, start=1_002, tier=Tier.DEFAULT, content=0)]).over_bound == 1
    assert judged([FIRST], [read(0, start=0, tier=Tier.DEFAULT, content=0)]).violations == {}


def test_what_is_still_old_in_the_end_is_permanently_stale() -> None:
    """Whether flagged or not; only reads of the last look count."""
    old = read(10, start=500, flags=Flag.FINAL)
    flagged = read(10, start=500, flags=Flag.FINAL | Flag.STALE)
    assert judged([FIRST, SECOND], [old, flagged]).permanent_stale == 2
    assert judged([FIRST, SECOND], [read(10, start=500), read(20, start=600, flags=Flag.FINAL)]).permanent_stale == 0


def test_what_is_old_in_the_end_needs_no_acknowledgement() -> None:
    """The journal has it, whoever was told."""
    dead = write(20, sent=100, acked=None)
    assert judged([FIRST, dead], [read(10, start=500, flags=Flag.FINAL)]).permanent_stale == 1


def test_other_bytes_than_those_of_the_version_are_wrong() -> None:
    """Also in the newest version, also where the row is deleted and the read has a value."""
    assert judged([FIRST], [read(10, start=50, content=11)]).wrong_bytes == 1
    deleted = write(20, sent=100, acked=110, content=0)
    assert judged([FIRST, deleted], [read(20, start=150, content=20)]).wrong_bytes == 1
    assert judged([FIRST, deleted], [read(20, start=150, tier=Tier.DEFAULT, content=0)]).wrong_bytes == 0


def test_a_version_that_was_never_committed_is_a_phantom() -> None:
    """Rolled back, lost with its connection, or from nowhere."""
    reads = [read(15, start=60)]
    assert judged([FIRST, rolled_back(15, at=50)], reads).phantom == 1
    assert judged([FIRST, rolled_back(15, at=50)], reads).rolled_back == 1
    assert judged([FIRST, write(15, sent=50, acked=None)], reads, lost=[15]).phantom == 1
    assert judged([FIRST, write(15, sent=50, acked=None)], reads).phantom == 0
    assert judged([FIRST], reads).phantom == 1


def test_a_commit_that_was_not_sent_when_the_read_ended_is_from_the_future() -> None:
    """One that was sent meanwhile may be seen."""
    assert judged([FIRST, SECOND], [read(20, start=50, end=99)]).future_reads == 1
    assert judged([FIRST, SECOND], [read(20, start=50, end=101)]).future_reads == 0


def test_a_session_with_a_token_never_goes_back() -> None:
    """Neither within the bound; sessions without one may, and so may what is flagged."""
    token = Flag.TOKEN

    def back(first: int, second: int, session: int = 7) -> int:
        reads = [read(20, start=120, flags=first), read(10, start=130, flags=second, session=session)]
        return judged([FIRST, SECOND], reads).monotonic_violations

    assert back(token, token) == 1
    assert back(token, token | Flag.STALE) == 0
    assert back(0, 0) == 0
    assert back(token, token, session=8) == 0


def test_a_session_with_a_token_sees_its_own_writes() -> None:
    """From the acknowledgement on; those of others it may miss."""
    own = write(20, sent=100, acked=110, session=7)

    def violations(start: int, flags: int = Flag.TOKEN, session: int = 7) -> int:
        return judged([FIRST, own], [read(10, start=start, flags=flags, session=session)]).ryw_violations

    assert violations(111) == 1
    assert violations(105) == 0
    assert violations(111, 0) == 0
    assert violations(111, session=8) == 0


def test_a_strong_read_misses_nothing_that_was_acknowledged() -> None:
    """Not even a moment before it began; flagged, it is not strong."""
    strong = Flag.STRONG
    assert judged([FIRST, SECOND], [read(10, start=111, flags=strong)]).strong_violations == 1
    assert judged([FIRST, SECOND], [read(10, start=109, flags=strong)]).strong_violations == 0
    assert judged([FIRST, SECOND], [read(10, start=111, flags=strong | Flag.STALE)]).strong_violations == 0


def test_strong_reads_do_not_go_back_even_before_the_acknowledgement() -> None:
    """One that began when another had ended sees as much; those that overlap may see either."""
    under_way = write(20, sent=100, acked=900)
    seen = read(20, start=120, end=130, flags=Flag.STRONG, session=1)
    assert judged([FIRST, under_way], [seen, read(10, start=140, flags=Flag.STRONG)]).strong_violations == 1
    assert judged([FIRST, under_way], [seen, read(10, start=125, flags=Flag.STRONG)]).strong_violations == 0


def test_nines_count_writes_that_somebody_missed_at_that_age() -> None:
    """Each write once, however many reads missed it."""
    writes = [write(version, sent=version, acked=version) for version in range(1_000, 2_000)]
    # At 2,400 the first of the two has been acknowledged for 0.402 s and the second for 0.401 s.
    verdict = judged(writes, [read(1_997, start=2_400), read(1_997, start=2_300), read(1_999, start=2_500)])
    by_horizon = {each.horizon_s: each for each in verdict.nines}
    assert by_horizon[0.25].failed == 2
    assert by_horizon[0.25].nines == pytest.approx(2.699, abs=0.001)
    assert by_horizon[1.0].failed == 0
    assert by_horizon[1.0].nines is None
    assert by_horizon[1.0].bound == pytest.approx(2.523, abs=0.001)


def test_nines_are_a_little_younger_to_a_wrong_clock() -> None:
    """By as much as its bound is wider."""

    def failed(offset_s: float) -> int:
        verdict = judged([FIRST, SECOND], [read(10, start=1_140)], clock_offset_s=offset_s)
        return next(each.failed for each in verdict.nines if each.horizon_s == 1.0)

    assert (failed(0.0), failed(-0.02), failed(0.05), failed(-0.05)) == (1, 1, 0, 0)


def test_reads_are_counted_by_what_answered() -> None:
    """Hits are L1 and L2; reads that got no answer count for nothing else."""
    reads = [
        read(10, start=50, tier=Tier.L1),
        read(10, start=51, tier=Tier.L2),
        read(10, start=52, tier=Tier.L3, flags=Flag.UNPROVEN),
        read(10, start=53, tier=Tier.L3),
        unanswered(start=54),
    ]
    verdict = judged([FIRST], reads)
    assert (verdict.reads, verdict.unanswered) == (5, 1)
    assert verdict.reads_by_tier == {"l1": 1, "l2": 1, "l3": 2}
    assert (verdict.hit_rate, verdict.unproven_ratio) == (0.5, 0.25)


def test_every_gated_figure_is_one_that_some_history_here_breaks() -> None:
    """A figure that cannot fail proves nothing."""
    own = write(20, sent=100, acked=110, session=7)
    reads = [
        read(20, start=50, end=60),
        read(15, start=120),
        read(10, start=130, content=3),
        read(20, start=140, flags=Flag.TOKEN),
        read(10, start=2_000, flags=Flag.TOKEN | Flag.STRONG | Flag.FINAL),
    ]
    assert set(judged([FIRST, own], reads).violations) == set(GATED)
