"""Which request comes next: what live traffic consists of, the same for the same seed."""

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

from tests.torture.bad_day.ledger import Ledger

WEIGHTS: Final = {
    "score": 50,
    "repeat": 9,
    "other": 4,
    "batch": 5,
    "label": 7,
    "find": 8,
    "features": 8,
    "forget": 2,
    "page": 3,
    "live": 3,
    "ready": 1,
}
PAGES: Final = (
    "/admin/",
    "/admin/cache/",
    "/admin/predictions/decision/",
    "/admin/features/transaction/",
    "/admin/features/ttlpolicy/",
    "/admin/features/labelreport/",
)
BATCH: Final = 8
_RECENT: Final = 400
_HOT_SHARE: Final = 0.4
"""Of the scores, those of the few hottest customers: their next payment comes before the last one is everywhere."""
_HOT: Final = 5
_LATE_SHARE: Final = 0.05
"""Of the transactions, those that come hours after they happened."""
_NEW_SHARE: Final = 0.03
"""Of the customers, those that nobody has ever seen."""

Transaction = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """`transactions`: those that are to be decided, in their order."""

    kind: str
    method: str
    path: str
    body: object = None
    transactions: tuple[Transaction, ...] = ()
    labels: tuple[dict[str, Any], ...] = ()
    concerns: str = ""
    """The transaction that is asked for."""


class Requests:
    """Without end. Used by one thread; `ledger` says what may be repeated, labelled and looked for."""

    def __init__(
        self, *, random: Random, pairs: list[tuple[str, str]], ledger: Ledger, now: Callable[[], datetime]
    ) -> None:
        self._random = random
        self._pairs = pairs
        self._customers = list(dict.fromkeys(customer for customer, _ in pairs))
        self._merchants = list(dict.fromkeys(merchant for _, merchant in pairs))
        self._ledger = ledger
        self._now = now
        self._numbers = itertools.count(1)
        self._recent: deque[Transaction] = deque(maxlen=_RECENT)
        self.customers_used: set[str] = set()
        self.merchants_used: set[str] = set()

    def __iter__(self) -> Iterator[Request]:
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        while True:
            (kind,) = self._random.choices(kinds, weights)
            yield getattr(self, f"_{kind}")()

    def probe(self, place: int) -> Request:
        """A score of a customer that is not hot."""
        customer, merchant = self._pairs[-1 - place % (len(self._pairs) // 2)]
        transaction = self._transaction(customer, merchant, name="probe")
        return _score("probe", transaction)

    def _score(self) -> Request:
        customer, merchant = self._pair()
        transaction = self._transaction(customer, merchant)
        self._recent.append(transaction)
        return _score("score", transaction)

    def _repeat(self) -> Request:
        if not self._recent:
            return self._score()
        return _score("repeat", self._random.choice(self._recent))

    def _other(self) -> Request:
        """Other contents under an id that is in PostgreSQL, as far as anybody was told."""
        for _ in range(20 if self._recent else 0):
            transaction = self._random.choice(self._recent)
            if self._ledger.certain(transaction["transaction_id"]) is not None:
                return _score("other", {**transaction, "amount": round(transaction["amount"] + 1.0, 2)})
        return self._score()

    def _batch(self) -> Request:
        """One of it is a repetition of an earlier one, and one stands there twice."""
        transactions = [self._transaction(*self._pair()) for _ in range(BATCH - 2)]
        transactions.append(self._random.choice(self._recent) if self._recent else transactions[0])
        transactions.append(transactions[0])
        self._recent.extend(transactions[:2])
        return Request(
            kind="batch",
            method="POST",
            path="/v1/scores/batch",
            body={"transactions": transactions},
            transactions=tuple(transactions),
        )

    def _label(self) -> Request:
        if not self._recent:
            return self._score()
        chosen = {self._random.choice(self._recent)["transaction_id"] for _ in range(5)}
        labels = [{"transaction_id": each, "is_fraud": self._random.random() < 0.3} for each in sorted(chosen)]
        return Request(kind="label", method="POST", path="/v1/labels", body={"labels": labels}, labels=tuple(labels))

    def _find(self) -> Request:
        if not self._recent:
            return self._score()
        wanted = self._random.choice(self._recent)["transaction_id"]
        return Request(kind="find", method="GET", path=f"/v1/scores/{wanted}", concerns=wanted)

    def _features(self) -> Request:
        return Request(kind="features", method="GET", path=f"/v1/features/{self._entity()}")

    def _forget(self) -> Request:
        return Request(kind="forget", method="DELETE", path=f"/v1/features/{self._entity()}")

    def _page(self) -> Request:
        return Request(kind="page", method="GET", path=self._random.choice(PAGES))

    def _live(self) -> Request:
        return Request(kind="live", method="GET", path="/healthz/live")

    def _ready(self) -> Request:
        return Request(kind="ready", method="GET", path="/healthz/ready")

    def _entity(self) -> str:
        customer, merchant = self._pair()
        return f"customer/{customer}" if self._random.random() < 0.7 else f"merchant/{merchant}"

    def _pair(self) -> tuple[str, str]:
        if self._random.random() < _HOT_SHARE:
            return self._random.choice(self._customers[:_HOT]), self._random.choice(self._merchants[:_HOT])
        if self._random.random() < _NEW_SHARE:
            return f"nobody-{self._random.randrange(50)}", self._random.choice(self._merchants)
        return self._random.choice(self._pairs)

    def _transaction(self, customer: str, merchant: str, *, name: str = "day") -> Transaction:
        self.customers_used.add(customer)
        self.merchants_used.add(merchant)
        late = timedelta(hours=self._random.uniform(1, 48)) if self._random.random() < _LATE_SHARE else timedelta()
        return {
            "transaction_id": f"{name}-{next(self._numbers)}",
            "occurred_at": (self._now() - late).astimezone(UTC).isoformat(timespec="microseconds"),
            "customer_id": customer,
            "merchant_id": merchant,
            "amount": round(self._random.lognormvariate(3.5, 1.0), 2),
            "currency": "EUR",
        }


def _score(kind: str, transaction: Transaction) -> Request:
    # A copy, as a client sends it: what is remembered must not change with it.
    body = json.loads(json.dumps(transaction))
    return Request(kind=kind, method="POST", path="/v1/scores", body=body, transactions=(transaction,))
