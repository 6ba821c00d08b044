"""Which model serves, in a process that must not ask Postgres on every request."""

import threading
from collections.abc import Iterator
from datetime import date
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections
from django.test.utils import CaptureQueriesContext

from features.definitions import BASELINE_FEATURES
from predictions.missing import OnMissingSource
from predictions.models import Activation, ModelArtifact, ModelVersion
from predictions.registry import active
from predictions.registry.active import NoActiveModel, Standing, current_model, refresh
from predictions.registry.artifact import ArtifactRefused
from predictions.registry.estimators import EstimatorKind
from predictions.registry.export import export_skops
from predictions.registry.parity import Parity
from predictions.registry.protocol import Periods, Quality
from predictions.registry.register import ActivationRefused, activate, register, roll_back
from predictions.registry.train import TrainedModel, TrainingPlan
from tests.features.sessions import conninfo
from tests.fixtures.population import forget_copies
from tests.fixtures.servers import ServerHandle
from tests.predictions.registry import examples

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    active.forget()
    forget_copies()
    yield
    active.forget()
    forget_copies()


def _trained(*, seed: int = 0, passed: bool = True) -> TrainedModel:
    kind = EstimatorKind.DECISION_TREE
    return TrainedModel(
        plan=TrainingPlan(
            model_name="fraud",
            kind=kind,
            feature_names=BASELINE_FEATURES,
            periods=Periods(train_start=date(2024, 3, 1)),
            seed=seed,
        ),
        estimator=examples.estimator(kind, seed),
        onnx_bytes=examples.onnx_of(kind, seed),
        skops_bytes=export_skops(examples.estimator(kind, seed)),
        thresholds=examples.THRESHOLDS,
        baseline=(1.0,) * len(BASELINE_FEATURES),
        quality=Quality(auc_roc=0.9, average_precision=0.5, card_precision_at_100=0.3),
        parity=Parity(max_difference=0.0 if passed else 1.0, differing_decisions=0, rows=10),
        train_rows=100,
        train_frauds=10,
        test_rows=100,
        test_frauds=10,
        unlabelled_rows=0,
    )


def _connect_anew() -> None:
    """Drops the pool, which would wait longer after each failed attempt before it tried again."""
    connections.close_all()
    for one in connections.all():
        one.close_pool()  # type: ignore[attr-defined]


def _break(model_version: ModelVersion) -> None:
    ModelArtifact.objects.filter(model_version=model_version).update(onnx=b"torn")


def test_without_an_activation_there_is_no_model() -> None:
    """The error says which command helps; an activation afterwards is picked up."""
    with pytest.raises(NoActiveModel, match=r"manage\.py train"):
        current_model()
    activate(register(_trained()))
    refresh()
    assert current_model().version == 1


def test_the_newest_activation_serves() -> None:
    """An activation replaces the model as a whole; a rollback is one more activation."""
    first = activate(register(_trained()))
    assert current_model().activation_id == first.pk
    second = activate(register(_trained(seed=1)))
    refresh()
    assert (current_model().version, current_model().activation_id) == (2, second.pk)
    assert current_model().thresholds == examples.THRESHOLDS
    roll_back()
    refresh()
    assert current_model().version == 1


def _versions(count: int) -> list[ModelVersion]:
    return [register(_trained(seed=seed)) for seed in range(count)]


def test_each_rollback_goes_further_back() -> None:
    """Never to a version that was taken back; at the end it is refused, and what serves goes on."""
    for version in _versions(3):
        activate(version)
    assert [roll_back().model_version.version for _ in range(2)] == [2, 1]
    for _ in range(2):
        with pytest.raises(ActivationRefused, match="nothing to roll back to"):
            roll_back()
    refresh()
    assert current_model().version == 1


def test_a_rollback_after_another_activation_takes_back_that_one() -> None:
    """It leaves out what earlier rollbacks had taken back."""
    one, bad, better = _versions(3)
    activate(one)
    activate(bad)
    roll_back()
    activate(better)
    assert roll_back().model_version == one
    with pytest.raises(ActivationRefused, match="nothing to roll back to"):
        roll_back()


def test_a_version_that_was_taken_back_is_not_found_further_down() -> None:
    """It had been activated twice."""
    one, bad, other = _versions(3)
    for version in (one, bad, other, bad):
        activate(version)
    assert [roll_back().model_version for _ in range(2)] == [other, one]


def test_a_rollback_passes_over_what_cannot_serve_any_more() -> None:
    """It says so in its reason, and a further one does not come back to it."""
    one, torn, bad = _versions(3)
    for version in (one, torn, bad):
        activate(version)
    _break(torn)
    activation = roll_back(reason="declines too much")
    assert activation.model_version == one
    assert activation.reason.startswith("declines too much; passed over: model fraud 2 may not serve: ")
    with pytest.raises(ActivationRefused, match="nothing to roll back to"):
        roll_back()


def test_a_rollback_with_nothing_but_broken_versions_is_refused_and_says_which() -> None:
    """What serves goes on."""
    torn, bad = _versions(2)
    for version in (torn, bad):
        activate(version)
    _break(torn)
    with pytest.raises(ActivationRefused, match="passed over: model fraud 1 may not serve"):
        roll_back()
    refresh()
    assert current_model().version == 2


def test_a_models_rule_is_followed_without_loading_it_again() -> None:
    """The next look finds the rule; the session stays the one that it was."""
    activate(register(_trained()))
    before = current_model()
    ModelVersion.objects.update(on_missing_source="fail")
    refresh()
    assert before.on_missing_source is OnMissingSource.FOLLOW
    assert current_model().on_missing_source is OnMissingSource.FAIL
    assert current_model().session is before.session


def test_other_processes_see_an_activation_by_themselves() -> None:
    """Nobody calls `refresh`: the poller finds the activation."""
    activate(register(_trained()))
    assert current_model().version == 1
    activate(register(_trained(seed=1)))
    seen = threading.Event()
    original = active._active.poller._poll

    def poll() -> None:
        original()
        seen.set()

    active._active.poller._poll = poll
    assert seen.wait(20)
    assert current_model().version == 2


def test_a_loaded_model_costs_no_query() -> None:
    """The hot path reads a variable."""
    activate(register(_trained()))
    current_model()
    with CaptureQueriesContext(connection) as queries:
        for _ in range(100):
            current_model()
    assert len(queries) == 0


def test_postgres_away_leaves_the_model_serving(postgres: ServerHandle) -> None:
    """The last model goes on; a process that has none says so at once after its first attempt."""
    activate(register(_trained()))
    model = current_model()
    postgres.kill()
    try:
        with pytest.raises(DatabaseError):
            refresh()
        assert current_model() is model
        assert active.standing_of_model() is Standing.ACTIVE
        active.forget()
        forget_copies()
        for _ in range(2):
            with pytest.raises(DatabaseError):
                current_model()
    finally:
        postgres.start()
        _connect_anew()


def test_a_torn_artifact_never_replaces_a_good_one() -> None:
    """An activation whose bytes changed since is refused by every process; the old model goes on serving."""
    activate(register(_trained()))
    good = current_model()
    newer = register(_trained(seed=1))
    activate(newer)
    _break(newer)
    for _ in range(2):
        with pytest.raises(ArtifactRefused, match="SHA-256"):
            active._Active.__dict__["_poll"](active._active)
    assert current_model() is good


def test_a_torn_artifact_cannot_be_activated() -> None:
    """Activation checks the stored bytes again."""
    model_version = register(_trained())
    _break(model_version)
    with pytest.raises(ActivationRefused, match="SHA-256"):
        activate(model_version)


def test_a_model_that_failed_the_gate_cannot_be_activated() -> None:
    """Whoever asks: the registered comparison decides."""
    with pytest.raises(ActivationRefused, match="differ by up to 1 "):
        activate(register(_trained(passed=False)))


def test_registering_at_the_same_time_gives_different_versions() -> None:
    """Two trainings that end together get consecutive numbers."""
    barrier, found = threading.Barrier(4), []

    def work(seed: int, **_: Any) -> None:
        try:
            trained = _trained(seed=seed)
            barrier.wait()
            found.append(register(trained).version)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(0,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 3, 4]


def test_an_activation_that_commits_after_a_later_one_serves() -> None:
    """The newest is the one that was acknowledged last, not the one that drew its number last."""
    one, other = register(_trained()), register(_trained(seed=1))
    with psycopg.connect(conninfo()) as first:
        first.execute("INSERT INTO predictions_activation (model_version_id, reason) VALUES (%s, '')", (one.pk,))
        later = activate(other)
        refresh()
        assert current_model().version == other.version
        first.commit()
    refresh()
    assert current_model().version == one.version
    assert (current_model().activation_id or 0) > later.pk


def test_a_restored_activation_of_another_model_under_the_same_number_is_noticed() -> None:
    """The number alone does not say which model it was."""
    activation = activate(register(_trained()))
    refresh()
    other = register(_trained(seed=1))
    Activation.objects.filter(pk=activation.pk).update(model_version=other)
    refresh()
    assert (current_model().version, current_model().activation_id) == (other.version, activation.pk)
