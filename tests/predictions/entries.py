"""Decisions as the journal takes them, of transactions that nobody has seen."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from features.ingest import NewTransaction
from predictions.journal import JournalEntry
from predictions.messages import RiskLevel, ScoreResponse, ServedModel
from predictions.models import ModelVersion

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


def entry(transaction_id: str, *, digest: bytes = b"d" * 32, **changes: Any) -> JournalEntry:
    transaction = NewTransaction(transaction_id, NOW, f"customer of {transaction_id}", "M1", 20.0, "EUR")
    response = ScoreResponse(
        transaction_id=transaction_id,
        score=0.25,
        risk_level=RiskLevel.LOW,
        decision="approve",
        reasons=(),
        degraded=False,
        degraded_reasons=(),
        oldest_feature_age_s=None,
        model=ServedModel("fraud", 1),
        policy_version=1,
        prediction_tier="computed",
        decided_at=NOW,
    )
    return JournalEntry(
        transaction=msgspec.structs.replace(transaction, **changes),
        client="test",
        digest=digest,
        model_version_id=ModelVersion.objects.values_list("id", flat=True)[0],
        policy_version=1,
        response=response,
    )
