"""The inspector and a process of its own: the web server, whose memory nobody else can see."""

import pytest

from features.inspection.verdicts import Cause
from tests.features.inspection.conftest import GROUP, Bench
from tests.fixtures.waiting import until
from tests.fixtures.web_process import WebProcess, web_process


def _risk(bench: Bench, web: WebProcess) -> tuple[str, float]:
    """Where the web process has the merchant's first number from, and what it is."""
    answer = web.post(bench.world.request(merchant_id=bench.key.id))
    (feature,) = [each for each in answer["features"] if each["name"] == "merchant_count_1d"]
    return feature["tier"], feature["value"]


@pytest.mark.quiet
def test_a_wrong_copy_in_another_process_is_found_and_repaired(bench: Bench) -> None:
    """Its L1 took the copy from L2 before that was mended: only a question to the process itself can tell."""
    with web_process() as web:
        bench.plant(bench.write(1), 7)
        assert _risk(bench, web) == ("l2", 7.0)
        bench.client.hdel(bench.record(), GROUP)
        assert _risk(bench, web) == ("l1", 7.0)
        inspector = bench.look_after(20)  # a web process may need seconds for its first score
        assert len(inspector.tally.processes) == 2
        (finding,) = inspector.tally.findings
        assert (finding.cause, finding.tier) == (Cause.WRONG_BYTES, "l1")
        bench.world.edit_policy(GROUP, use_l1=True, use_l2=True)
        until(lambda: _risk(bench, web)[1] == 1.0)
