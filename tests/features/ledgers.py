"""Small ledgers to compute from."""

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from features.models import Transaction

START = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday


def payment(
    transaction_id: str,
    at: datetime,
    *,
    customer: str = "c1",
    merchant: str = "m1",
    amount: str = "10.00",
    is_fraud: bool | None = False,
) -> Transaction:
    return Transaction(
        id=transaction_id,
        occurred_at=at,
        customer_id=customer,
        merchant_id=merchant,
        amount=Decimal(amount),
        is_fraud=is_fraud,
    )


def record(payments: Iterable[Transaction]) -> None:
    Transaction.objects.bulk_create(payments)


def some_payments(
    count: int, *, days: int, seed: int = 1, customers: int = 6, merchants: int = 5
) -> Sequence[Transaction]:
    """In order of time and id; every fourth at the same second as the one before, never in a day's first second."""
    chance = random.Random(seed)
    moments = sorted(
        START + timedelta(days=chance.randrange(days), seconds=chance.randrange(1, 86_400)) for _ in range(count)
    )
    for place in range(3, count, 4):
        moments[place] = moments[place - 1]
    return [
        payment(
            str(place + 8),  # so that 8, 9, 10 stand in this order and not in the alphabet's
            moment,
            customer=f"c{chance.randrange(customers)}",
            merchant=f"m{chance.randrange(merchants)}",
            amount=f"{chance.randrange(1, 4_000_000) / 10_000:.4f}",
            is_fraud=chance.choice([True, False, False, False, None]),
        )
        for place, moment in enumerate(moments)
    ]
