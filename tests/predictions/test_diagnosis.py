"""What the doctor says of model, policies and features."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from features.diagnosis import diagnose_features, diagnose_policies
from features.models import FeatureRow, TtlPolicy
from mlserve.platform.diagnosis import Level
from predictions.diagnosis import diagnose_model
from predictions.models import Activation
from tests.fixtures.population import World


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
