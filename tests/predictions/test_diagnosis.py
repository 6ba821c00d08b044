"""What the doctor says of model, policies and features."""

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from features.diagnosis import diagnose_features, diagnose_policies, diagnose_policies_copy
from features.models import FeatureRow, TtlPolicy
from features.policies import policies_copy
from mlserve import local_copy
from mlserve.platform.diagnosis import Level
from predictions.diagnosis import diagnose_model, diagnose_model_copy
from predictions.models import Activation, ModelArtifact
from predictions.registry.model_copy import ModelCopy
from tests.fixtures.population import World
from tests.fixtures.waiting import until


class _Undone(Exception):
    pass


@pytest.mark.usefixtures("world")
def test_a_world_that_can_score_is_fine() -> None:
    """Policies for every group, features within their limits, a model that loads."""
    findings = [*diagnose_policies(), *diagnose_features(), *diagnose_model()]
    assert [(finding.subject, finding.level) for finding in findings] == [
        ("policies", Level.OK),
        ("features", Level.OK),
        ("model", Level.OK),
    ]


@pytest.mark.parametrize(
    ("groups", "values"),
    [
        (["merchant_embedding"], '"values"[:16] || 7.0::float8'),
        (["merchant_embedding"], '"values"[:16]'),
        (["customer_embedding", "merchant_embedding"], '"values"[:16]'),
    ],
)
def test_embeddings_of_two_builds_are_said(world: World, groups: list[str], values: str) -> None:
    """As a restored table leaves them, or a release that knew no builds; with the command that ends it."""
    with pytest.raises(_Undone), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f'UPDATE features_featurerow SET "values" = {values} WHERE "group" = ANY(%s)', (groups,))
        (finding,) = diagnose_features()
        assert (finding.subject, finding.level) == ("features", Level.WARN)
        assert "two builds" in finding.detail and "build_features --groups customer_embedding" in finding.fix
        raise _Undone


def test_what_is_missing_is_named_with_the_fix(world: World) -> None:
    """No policy, no model, features past their limit, a streaming group in L1."""
    with pytest.raises(_Undone), transaction.atomic():
        Activation.objects.all().delete()
        FeatureRow.objects.filter(group="merchant_risk").update(as_of=timezone.now() - timedelta(hours=2))
        TtlPolicy.objects.filter(name="customer_activity").update(use_l1=True)
        (model,), (late,), (in_l1,) = diagnose_model(), diagnose_features(), diagnose_policies()
        TtlPolicy.objects.filter(name="merchant_risk").delete()
        (missing,) = diagnose_policies()
        assert (model.level, late.level, in_l1.level, missing.level) == (Level.FAIL, Level.WARN, Level.WARN, Level.FAIL)
        assert "train" in model.fix and "merchant_risk" in late.detail
        assert "customer_activity" in in_l1.detail and "merchant_risk" in missing.detail
        raise _Undone


def test_what_is_active_and_broken_is_named_with_the_fix(world: World) -> None:
    """A changed artifact, a policy that makes no sense."""
    with pytest.raises(_Undone), transaction.atomic():
        ModelArtifact.objects.update(onnx=b"changed")
        TtlPolicy.objects.filter(name="merchant_risk").update(grace_s=-1)
        (model,), (policy,) = diagnose_model(), diagnose_policies()
        assert (model.level, policy.level) == (Level.FAIL, Level.FAIL)
        assert "SHA-256" in model.detail and "rollback" in model.fix
        assert "merchant_risk: grace_s is -1; 0 is in force" in policy.detail
        raise _Undone


def test_what_this_host_remembers_is_said_with_its_moment(world: World) -> None:
    """None, whole, or damaged; without asking PostgreSQL."""
    (model,), (policies,) = diagnose_model_copy(), diagnose_policies_copy()
    assert "none on this host" in model.detail and "none on this host" in policies.detail
    world.score()
    until(lambda: ModelCopy().load() is not None and policies_copy().load() is not None)
    (model,), (policies,) = diagnose_model_copy(), diagnose_policies_copy()
    assert (model.level, policies.level) == (Level.OK, Level.OK)
    assert "fraud 1, activation" in model.detail and "as of 20" in model.detail and "as of 20" in policies.detail
    for path in local_copy.folder().glob("*.json"):
        path.write_bytes(b"torn")
    (model,), (policies,) = diagnose_model_copy(), diagnose_policies_copy()
    assert (model.level, policies.level) == (Level.WARN, Level.WARN)
