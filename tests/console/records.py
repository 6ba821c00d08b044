"""Models and decisions to look at."""

import json
from datetime import UTC, datetime
from typing import Any

from features.definitions import BASELINE_FEATURES
from predictions.models import Decision, ModelArtifact, ModelVersion
from predictions.registry.artifact import artifact_digest
from tests.predictions.registry import examples

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def make_model(version: int, *, passed: bool = True, seed: int = 0) -> ModelVersion:
    """A registered model version with a real artifact; of another seed, another one."""
    onnx = examples.onnx_of(seed=seed)
    model_version = ModelVersion.objects.create(
        version=version,
        estimator="logistic_regression",
        feature_names=list(BASELINE_FEATURES),
        feature_baseline=[0.0] * len(BASELINE_FEATURES),
        review_from=0.2,
        decline_from=0.5,
        digest=artifact_digest(onnx),
        metrics={
            "auc_roc": 0.87,
            "average_precision": 0.61,
            "card_precision_at_100": 0.29,
            "train_frauds": 100,
            "test_rows": 5000,
            "test_frauds": 50,
            "flagged": 60,
            "declined": 10,
        },
        training={"train_start": "2018-07-25"},
        parity={"max_difference": 3e-7, "differing_decisions": 0, "rows": 100, "passed": passed, "summary": "as said"},
    )
    ModelArtifact.objects.create(model_version=model_version, onnx=onnx, skops=b"")
    return model_version


def comparison_report(**changes: Any) -> dict[str, Any]:
    """Of a candidate that is as good as the champion."""
    one = {
        "version": "fraud 1",
        "average_precision": 0.6,
        "brier": 0.005,
        "flagged": 60,
        "flagged_share": 0.012,
        "declined": 20,
        "declined_share": 0.004,
        "decline_precision": 0.9,
        "recall": 0.7,
    }
    return {
        "first_day": "2024-03-29",
        "last_day": "2024-04-04",
        "rows": 5000,
        "frauds": 50,
        "customers": 40,
        "candidate": {**one, "version": "fraud 2"},
        "champion": one,
        "difference": {"value": 0.0, "low": -0.02, "high": 0.02},
        **changes,
    }


def make_decision(model_version: ModelVersion, *, response: bytes | None = None) -> Decision:
    """A degraded decision with one stale feature, or with the given bytes as its response."""
    body = {
        "transaction_id": "T1",
        "score": 0.3,
        "risk_level": "medium",
        "decision": "review",
        "reasons": [{"feature": "amount", "value": 900.0, "effect": 0.25, "text": "amount 900 <usually 43>"}],
        "degraded": True,
        "degraded_reasons": ["stale"],
        "oldest_feature_age_s": 90.0,
        "model": {"name": "fraud", "version": 1},
        "policy_version": 7,
        "prediction_tier": "computed",
        "decided_at": NOW.isoformat(),
        "features": [
            {
                "name": "customer_count_1d",
                "value": 3.0,
                "tier": "l2",
                "as_of": NOW.isoformat(),
                "age_s": 90.0,
                "max_age_s": 60.0,
                "stale": True,
            }
        ],
        "trace": [{"tier": "l2", "asked": 6, "hit": 5, "ms": 0.31}],
    }
    return Decision.objects.create(
        transaction_id="T1",
        client="mls_abc",
        request_digest=b"x",
        model_version=model_version,
        policy_version=7,
        score=0.3,
        decision="review",
        degraded=True,
        response=json.dumps(body).encode() if response is None else response,
        decided_at=NOW,
    )
