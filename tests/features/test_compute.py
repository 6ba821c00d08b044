import math
import statistics
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import compute
from features.compute import AMOUNT_UNITS, DAY_US, VectorPlan, activity_windows, transaction_tag
from features.definitions import ALL_FEATURES, BASELINE_FEATURES, EMBEDDING_SIZE, MODEL_FEATURES

DAY = 86_400
_START = 1_700_000_000
# Whole days and a second beside them: where windows begin and end.
_moments = st.builds(
    lambda days, seconds: _START + days * DAY + seconds, st.integers(0, 40), st.sampled_from([-1, 0, 0, 0, 1, 3600])
)
_payments = st.lists(
    st.tuples(_moments, st.integers(0, 2), st.integers(0, 10**13), st.integers(0, 1)), min_size=1, max_size=40
).map(sorted)

_money = st.integers(0, 10**13).map(lambda units: units / AMOUNT_UNITS)


def _close(actual: object, expected: object) -> bool:
    return bool(np.allclose(np.asarray(actual), np.asarray(expected), rtol=1e-9, atol=1e-9))


def _columns(payments: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, ...]:
    at, entity, units, fraud = np.array(payments, dtype=np.int64).T
    return entity, at * 1_000_000, units, fraud


@given(_payments)
def test_customer_windows_are_the_same_for_serving_and_training(payments: list[tuple[int, int, int, int]]) -> None:
    """Whether the list holds the transaction already, later ones too, or ends before it."""
    entity, at_us, units, _ = _columns(payments)
    trained = compute.customer_windows(entity, at_us, units)
    for place, (at, customer, amount_units, _fraud) in enumerate(payments):
        whole, before = [0.0], [0.0]
        for other, (moment, owner, paid, _) in enumerate(payments):
            if owner == customer:
                whole += [float(moment), paid / AMOUNT_UNITS, float(other)]
                before += [float(moment), paid / AMOUNT_UNITS, float(other)] if other < place else []
        amount = amount_units / AMOUNT_UNITS
        recorded = activity_windows(whole, at=float(at), amount=-1.0, tag=float(place))
        coming = activity_windows(before, at=float(at), amount=amount, tag=float(place))
        assert _close(recorded.values, trained[place])
        assert _close(coming.values, trained[place])


@given(_payments)
def test_merchant_windows_are_what_counting_by_hand_gives(payments: list[tuple[int, int, int, int]]) -> None:
    """Half open, delayed by seven days, share 0 when empty; per transaction and per merchant at one moment."""
    entity, at_us, _, fraud = _columns(payments)
    trained = compute.merchant_windows(entity, at_us, fraud)

    def counted(merchant: int, now: int) -> list[float]:
        row: list[float] = []
        for days in (1, 7, 30):
            found = [
                label
                for at, owner, _, label in payments
                if owner == merchant and now - (7 + days) * DAY < at <= now - 7 * DAY
            ]
            row += [len(found), sum(found) / len(found) if found else 0.0]
        return row

    for place, (at, merchant, _, _) in enumerate(payments):
        assert _close(trained[place], counted(merchant, at))
    now = payments[-1][0]
    built = compute.merchant_windows_at(3, entity, at_us, fraud, now_us=now * 1_000_000)
    assert _close(built, [counted(merchant, now) for merchant in range(3)])


@given(
    _money,
    st.floats(0, 2e9),
    st.one_of(st.none(), st.tuples(st.floats(0, 2e9), _money, _money)),
    st.lists(st.floats(-1e3, 1e3), min_size=16, max_size=16),
    st.lists(st.sampled_from([-1.0, 0.0, 0.0, 2.5]), min_size=16, max_size=16),
)
def test_profiles_and_affinity_are_the_same_for_serving_and_training(
    amount: float, at: float, profile: tuple[float, float, float] | None, left: list[float], right: list[float]
) -> None:
    """Unknown profiles, zero means and zero vectors included."""
    at = round(at, 6)
    row = np.array([profile or [math.nan] * 3])
    at_us, amounts = np.array([round(at * 1e6)]), np.array([amount])
    plan = VectorPlan(ALL_FEATURES)
    groups = {
        "customer_profile": profile,
        "merchant_profile": profile and profile[:2],
        "customer_embedding": [*left, 7.0],
        "merchant_embedding": [*right, 7.0],
    }
    served = dict(
        zip(plan.names, plan.derive(occurred_at=at, amount=amount, tag=None, groups=groups).values, strict=True)
    )
    names = ("customer_age_days", "amount_to_usual", "amount_deviations", "merchant_age_days", "amount_to_ticket")
    trained = [
        *compute.against_customer(row, at_us, amounts)[0],
        *compute.against_merchant(row[:, :2], at_us, amounts)[0],
    ]
    assert _close([served[name] for name in names], trained)
    assert _close(served["affinity"], compute.cosines(np.array([left]), np.array([right]))[0])
    assert _close([served["is_weekend"], served["is_night"]], compute.calendar(at_us)[0])


@given(st.lists(_payments, min_size=1, max_size=4))
@settings(max_examples=50)
def test_profiles_brought_forward_day_by_day_equal_those_of_the_whole(
    days: list[list[tuple[int, int, int, int]]],
) -> None:
    """Mean and population deviation do not depend on how history was cut."""
    profiles = compute.Profiles(3)
    paid: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for payments in days:
        entity, at_us, units, _ = _columns([(at, owner, paid % 10**9, fraud) for at, owner, paid, fraud in payments])
        profiles.add(entity, at_us, units)
        for owner, amount_units in zip(entity.tolist(), units.tolist(), strict=True):
            paid[owner].append(amount_units / AMOUNT_UNITS)
    for owner, amounts in paid.items():
        first_seen, mean, deviation = profiles.customers()[owner]
        if amounts:
            assert mean == pytest.approx(statistics.fmean(amounts), rel=1e-9)
            assert deviation == pytest.approx(statistics.pstdev(amounts), rel=1e-9, abs=1e-6)
            assert profiles.merchants()[owner].tolist() == [first_seen, mean]
        else:
            assert math.isnan(first_seen) and not profiles.known[owner]


def test_equal_amounts_have_no_deviation_at_all() -> None:
    """Rounding leaves no tiny deviation that would turn any other amount into an outlier."""
    profiles = compute.Profiles(1)
    for _ in range(5):
        profiles.add(np.zeros(7, dtype=np.int64), np.arange(7), np.full(7, 123_457, dtype=np.int64))
    assert profiles.customers()[0, 2] == 0


def test_a_window_leaves_out_its_first_moment() -> None:
    """`(t - w, t]`: a transaction exactly a day ago is not in the window of one day."""
    at = 1_700_000_000.0
    day_ago = [0.0, at - DAY, 30.0, 1.0]
    assert activity_windows(day_ago, at=at, amount=10, tag=2.0).values == (1, 10, 2, 20, 2, 20)
    assert activity_windows(day_ago, at=at - 1e-6, amount=10, tag=2.0).values == (2, 20, 2, 20, 2, 20)


def test_at_one_second_only_those_before_the_transaction_count() -> None:
    """The list's order decides; one that it does not hold yet comes last."""
    at = 1_700_000_000.0
    listed = [0.0, at, 1.0, 7.0, at, 2.0, 8.0, at, 3.0, 9.0]
    counts = [activity_windows(listed, at=at, amount=4, tag=tag).values[0] for tag in (7.0, 8.0, 9.0, 5.0, None)]
    assert counts == [1, 2, 3, 4, 4]


def test_a_history_that_does_not_reach_back_thirty_days_is_said() -> None:
    """Complete from exactly the window's start is enough."""
    at = 1_700_000_000.0
    assert activity_windows([at - 30 * DAY], at=at, amount=1, tag=None).complete
    assert not activity_windows([at - 30 * DAY + 1], at=at, amount=1, tag=None).complete
    late = VectorPlan(["customer_count_1d"]).derive(
        occurred_at=at, amount=1, tag=None, groups={"customer_activity": [at]}
    )
    assert late.incomplete


def test_what_is_unknown_has_the_defaults_of_the_definitions() -> None:
    """An unknown customer's windows hold this one transaction; all else is the feature's default."""
    wednesday_noon = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()
    plan = VectorPlan(ALL_FEATURES)
    served = plan.derive(occurred_at=wednesday_noon, amount=42.0, tag=1.0, groups=dict.fromkeys(plan.groups))
    expected = {name: feature.default for name, feature in MODEL_FEATURES.items()}
    expected |= {"amount": 42.0}
    expected |= {f"customer_count_{days}d": 1.0 for days in (1, 7, 30)}
    expected |= {f"customer_mean_amount_{days}d": 42.0 for days in (1, 7, 30)}
    assert dict(zip(plan.names, served.values, strict=True)) == expected
    assert not served.incomplete


def test_a_vector_has_the_order_that_the_model_declares() -> None:
    """Any order, any subset, a single feature included."""
    groups = {"merchant_risk": (1.0, 0.1, 7.0, 0.7, 30.0, 0.3)}
    for names, values in (
        (("merchant_risk_7d", "amount", "merchant_count_30d"), (0.7, 5.0, 30.0)),
        (("amount",), (5.0,)),
    ):
        assert compute.derive(names=names, occurred_at=0.0, amount=5.0, tag=None, groups=groups).values == values
    assert VectorPlan(["affinity", "amount"]).groups == ("customer_embedding", "merchant_embedding")
    with pytest.raises(ValueError, match="no model features: nonsense"):
        VectorPlan(["amount", "nonsense"])


@pytest.mark.parametrize(
    ("moment", "weekend", "night"),
    [
        (datetime(2018, 6, 23, 0, 0, 0, tzinfo=UTC), 1, 1),  # a Saturday
        (datetime(2018, 6, 24, 23, 59, 59, tzinfo=UTC), 1, 0),
        (datetime(2018, 6, 25, 6, 59, 59, tzinfo=UTC), 0, 1),
        (datetime(2018, 6, 25, 7, 0, 0, tzinfo=UTC), 0, 0),
    ],
)
def test_night_lasts_to_the_end_of_hour_six_and_the_weekend_two_days(
    moment: datetime, weekend: int, night: int
) -> None:
    """In UTC."""
    names = BASELINE_FEATURES[1:3]
    served = compute.derive(names=names, occurred_at=moment.timestamp(), amount=1.0, tag=None, groups={})
    assert list(served.values) == [weekend, night]
    assert compute.calendar(np.array([int(moment.timestamp()) * 1_000_000]))[0].tolist() == [weekend, night]


def test_a_tag_is_a_whole_number_of_32_bits() -> None:
    """A float holds it exactly, so the database and Python compare equal."""
    assert transaction_tag("1") == 0x6B86B273
    assert all(0 <= transaction_tag(str(n)) < 2**32 for n in range(100))
    assert DAY_US == DAY * 1_000_000


def test_embeddings_of_two_builds_are_not_compared() -> None:
    """Nor is one that was stored before builds had numbers: the default stands, and it is said."""
    plan = VectorPlan(["affinity"])

    def derived(customer: list[float] | None, merchant: list[float] | None) -> compute.Derived:
        groups = {"customer_embedding": customer, "merchant_embedding": merchant}
        return plan.derive(occurred_at=0.0, amount=1.0, tag=None, groups=groups)

    place = [0.5] * EMBEDDING_SIZE
    alike = derived([*place, 1.0], [*place, 1.0])
    assert alike.values == pytest.approx((1.0,)) and not alike.unrelated
    assert derived([*place, 1.0], [*place, 2.0]) == compute.Derived((0.0,), False, True)
    assert derived(place, [*place, 1.0]) == compute.Derived((0.0,), False, True)
    assert derived(place, place) == compute.Derived((0.0,), False, True)
    assert derived([*place, 0.0], [*place, 0.0]) == compute.Derived((0.0,), False, True)  # 0 is no build's number
    assert derived(None, [*place, 1.0]) == compute.Derived((0.0,), False, False)  # unknown is another matter
