"""Why a score is what it is."""

import pytest

from features.definitions import ALL_FEATURES, BASELINE_FEATURES
from predictions.reasons import _text, explain
from predictions.registry.estimators import EstimatorKind
from tests.predictions.registry import examples


@pytest.mark.parametrize("kind", list(EstimatorKind))
def test_an_effect_is_the_score_against_the_feature_at_its_median(kind: EstimatorKind) -> None:
    """At most three reasons, strongest first, each exactly the change of the score that it says."""
    model = examples.loaded(kind)
    values = (500.0, *model.baseline[1:])
    reasons = explain(model, values)
    assert 1 <= len(reasons) <= 3
    assert reasons[0].feature == "amount"
    assert reasons[0].value == 500.0
    without = (model.baseline[0], *values[1:])
    assert reasons[0].effect == pytest.approx(model.score_one(values) - model.score_one(without), abs=1e-9)
    assert [abs(one.effect) for one in reasons] == sorted((abs(one.effect) for one in reasons), reverse=True)


def test_a_usual_transaction_has_no_reasons() -> None:
    """Where every feature is at its median nothing moved the score."""
    model = examples.loaded()
    assert explain(model, model.baseline) == ()


def test_reasons_are_plain_words_with_units() -> None:
    """Counts, amounts, shares and flags read as sentences that stand alone."""
    assert _text("customer_count_1d", 12, 2, "EUR") == (
        "12 transactions of the customer in the last 1 d, this one included; usually 2"
    )
    assert _text("amount", 250.5, 40, "EUR") == "amount of this transaction: 250.50 EUR; usually 40.00 EUR"
    assert _text("merchant_risk_7d", 0.375, 0, "EUR") == (
        "share of fraud at the merchant over 7 d, delayed 7 d: 37.5 %; usually 0.0 %"
    )
    assert _text("merchant_count_7d", 3, 9, "EUR") == (
        "3 transactions of the merchant over 7 d, delayed 7 d; usually 9"
    )
    assert _text("is_night", 1, 0, "EUR") == "hour 0 to 6, UTC: yes; usually no"


def test_every_feature_has_a_text() -> None:
    """No definition's unit is shown by its bare name where the words would be nonsense."""
    for name in ALL_FEATURES:
        text = _text(name, 1.0, 0.0, "EUR")
        assert "usually" in text
        assert "0 or 1" not in text
        assert "their" not in text
    assert _text(BASELINE_FEATURES[0], 1.0, 0.0, "") == "amount of this transaction: 1.00; usually 0.00"
    assert _text("gone", 1.5, 0.0, "EUR") == "gone: 1.5; usually 0"
