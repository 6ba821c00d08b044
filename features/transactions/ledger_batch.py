"""Rows of the ledger, column by column, on their way into Postgres."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LABEL_UNKNOWN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerBatch:
    """Columns of equal length. Ids follow `EntityId`: 1 to 64 of A-Z a-z 0-9 . _ : -

    `occurred_at` is datetime64[us] in UTC, `amounts` float64 with at most four decimals, `labels` int8: 1 fraud,
    0 genuine, -1 unknown.
    """

    transaction_ids: Sequence[str]
    occurred_at: NDArray[np.datetime64]
    customer_ids: Sequence[str]
    merchant_ids: Sequence[str]
    amounts: NDArray[np.float64]
    currencies: Sequence[str]
    labels: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.transaction_ids)


def joined(batches: Sequence[LedgerBatch]) -> LedgerBatch:
    """One batch of all rows, in order. At least one batch is needed."""
    return LedgerBatch(
        transaction_ids=[transaction_id for batch in batches for transaction_id in batch.transaction_ids],
        occurred_at=np.concatenate([batch.occurred_at for batch in batches]),
        customer_ids=[customer_id for batch in batches for customer_id in batch.customer_ids],
        merchant_ids=[merchant_id for batch in batches for merchant_id in batch.merchant_ids],
        amounts=np.concatenate([batch.amounts for batch in batches]),
        currencies=[currency for batch in batches for currency in batch.currencies],
        labels=np.concatenate([batch.labels for batch in batches]),
    )
