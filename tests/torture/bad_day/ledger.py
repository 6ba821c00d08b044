"""What clients were told of each transaction, in the order in which they learnt it."""

import json
import threading
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO


class Told(StrEnum):
    """What a client knows of its transaction after an answer, or without one."""

    DECIDED = "decided"
    """200: this decision stands. Also what `GET /v1/scores/{id}` showed."""
    CONFLICT = "conflict"
    """422: the id belongs to other contents."""
    REFUSED = "refused"
    """Nothing was decided: 503, or nobody took the connection."""
    UNKNOWN = "unknown"
    """No answer, or 503 with the advice to ask again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One answer about one transaction. `amount` is what was sent, None for who only asked; times in seconds of the
    day."""

    transaction_id: str
    sent_at: float
    answered_at: float
    told: Told
    under: str
    """The fault during which it was sent."""
    web: int
    kind: str
    amount: float | None = None
    customer_id: str = ""
    score: float | None = None
    decision: str = ""
    reasons: tuple[str, ...] = ()
    replayed: bool = False
    detail: str = ""

    @property
    def spooled(self) -> bool:
        return "decision_spooled" in self.reasons


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTold:
    """The service has said that it has recorded this label."""

    transaction_id: str
    is_fraud: bool
    sent_at: float
    under: str


class Ledger:
    """Thread-safe. Every attempt also goes to a file, so that a day can be read afterwards."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._attempts: dict[str, list[Attempt]] = {}
        self._labels: list[LabelTold] = []
        self._certain_since = 0.0
        self._file: IO[str] | None = path.open("w", encoding="utf-8") if path else None

    def note(self, attempt: Attempt) -> None:
        with self._lock:
            self._attempts.setdefault(attempt.transaction_id, []).append(attempt)
            if self._file is not None:
                self._file.write(json.dumps(asdict(attempt)) + "\n")

    def note_label(self, label: LabelTold) -> None:
        with self._lock:
            self._labels.append(label)

    def labels(self) -> list[LabelTold]:
        """Those that PostgreSQL has, unless it breaks a promise."""
        with self._lock:
            return [label for label in self._labels if label.sent_at >= self._certain_since]

    def attempts(self) -> dict[str, list[Attempt]]:
        """A copy, by transaction id."""
        with self._lock:
            return {transaction_id: list(attempts) for transaction_id, attempts in self._attempts.items()}

    def doubt_all_before(self, at: float) -> None:
        """PostgreSQL was restored: what it had taken by then may be lost."""
        self._certain_since = at

    def certain(self, transaction_id: str) -> Attempt | None:
        """The first decision that a client was told and that PostgreSQL has, unless it breaks a promise."""
        with self._lock:
            return next(
                (
                    attempt
                    for attempt in self._attempts.get(transaction_id, ())
                    if attempt.told is Told.DECIDED and not attempt.spooled and attempt.sent_at >= self._certain_since
                ),
                None,
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
