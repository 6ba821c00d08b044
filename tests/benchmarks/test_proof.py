"""What proof costs a reader: that each line can be measured; no time is asserted."""

import pytest

from benchmarks.proof import open_proof
from features.progress import silent


@pytest.mark.torture
def test_the_proof_benchmark_reads_what_it_says() -> None:
    """Proven copies serve as long as a relay runs. Without one they do not count, and PostgreSQL is read."""
    with open_proof(silent) as (from_l1, from_l2, unproven):
        assert [each.name for each in (from_l1, from_l2, unproven)] == ["proof-l1", "proof-l2", "proof-unproven"]
        for contest in (from_l1, from_l2):
            assert contest.ours(0.1) > 0 and contest.other(0.1) > 0
            for side in contest.figures().values():
                assert side["L1 %"] + side["L2 %"] + side["L3 %"] == pytest.approx(100)
        assert from_l1.figures()["with proof"]["L1 %"] > 90
        assert from_l2.figures()["with proof"]["L2 %"] > 90
        with_relay, without = unproven.ours(0.1), unproven.other(0.1)
    assert with_relay < without
