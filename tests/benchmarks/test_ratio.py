"""The arithmetic of rounds, ratios and verdicts."""

import pytest

from benchmarks.ratio import Compare, Ratio, Round, Target, Verdict, ratio_of, verdict_on

ROUNDS = [Round(ours=2.0, other=20.0), Round(ours=1.0, other=16.0), Round(ours=4.0, other=20.0)]


def test_the_ratio_is_taken_round_by_round() -> None:
    """Median, least and largest of the rounds' own ratios."""
    assert ratio_of(ROUNDS, Compare.OTHER_OVER_OURS) == Ratio(median=10.0, min=5.0, max=16.0)
    assert ratio_of(ROUNDS, Compare.OURS_OVER_OTHER) == Ratio(median=0.1, min=0.0625, max=0.2)


@pytest.mark.parametrize(
    ("low", "high", "target", "verdict"),
    [
        (10.0, 12.0, Target(10), Verdict.HOLDS),
        (9.99, 12.0, Target(10), Verdict.NONE),
        (5.0, 9.99, Target(10), Verdict.MISSED),
        (1.0, 1.5, Target(1.5, at_most=True), Verdict.HOLDS),
        (1.0, 1.51, Target(1.5, at_most=True), Verdict.NONE),
        (1.51, 2.0, Target(1.5, at_most=True), Verdict.MISSED),
    ],
)
def test_a_verdict_needs_every_round(low: float, high: float, target: Target, verdict: Verdict) -> None:
    """On the bound counts as met; a spread across it is no verdict, wherever the median lies."""
    assert verdict_on(Ratio(median=low, min=low, max=high), target) is verdict
    assert verdict_on(Ratio(median=high, min=low, max=high), target) is verdict


def test_a_target_says_its_direction() -> None:
    """In the words of the table."""
    assert (str(Target(10)), str(Target(1.5, at_most=True))) == ("at least 10", "at most 1.5")
