"""A small ledger for training: five weeks of forty customers at twelve merchants, with two kinds of fraud."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np

from features.models import Transaction

BEGIN = datetime(2024, 3, 1, tzinfo=UTC)
DAYS = 35


def fill_ledger(*, days: int = DAYS, per_day: int = 60, fraud_share: float = 0.06, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    rows = []
    for i in range(days * per_day):
        fraud = bool(random.random() < fraud_share)
        large = fraud and bool(random.random() < 0.5)
        amount = random.uniform(300, 500) if large else random.gamma(2.0, 25.0)
        merchant = random.integers(0, 2) if fraud and not large else random.integers(0, 12)
        rows.append(
            Transaction(
                id=f"t{i:06d}",
                # The newest lies in the last minutes of the last day: it counts as a whole day.
                occurred_at=BEGIN + timedelta(days=(i + 1) / per_day) - timedelta(minutes=5),
                customer_id=f"c{random.integers(0, 40)}",
                merchant_id=f"m{merchant}",
                amount=Decimal(f"{amount:.2f}"),
                is_fraud=fraud,
            )
        )
    Transaction.objects.bulk_create(rows)
