"""What makes a transaction the one that it is: its row of the ledger, and what a repetition is recognised by."""

from datetime import UTC
from hashlib import sha256

import msgspec

from features.ingest import NewTransaction
from predictions.messages import ScoreRequest

_encode = msgspec.json.Encoder().encode


def transaction_of(request: ScoreRequest) -> NewTransaction:
    """As the ledger takes it."""
    return NewTransaction(
        request.transaction_id,
        request.occurred_at,
        request.customer_id,
        request.merchant_id,
        request.amount,
        request.currency,
    )


def digest_of(request: ScoreRequest) -> bytes:
    """Over what makes the transaction, in one spelling; how fresh the features were asked for is not part of it."""
    canonical = msgspec.structs.replace(request, occurred_at=request.occurred_at.astimezone(UTC), max_age_s=None)
    return sha256(_encode(canonical)).digest()
