"""`python -m benchmarks.frozen_scorer`: scores transactions one by one and times each. A child of `frozen.py`."""

from datetime import UTC, datetime
from itertools import count
from typing import Any

import django
import msgspec

from benchmarks.child import say, told


class Task(msgspec.Struct):
    """How many scores to time, of which pairs (customer, merchant). `heal`: first wait until L2 answers again."""

    scores: int
    pairs: list[tuple[str, str]]
    heal: bool = False


class Timed(msgspec.Struct):
    """`ms`: of each score, in order. `failed`: how many raised, dry runs and real ones."""

    ms: list[float]
    failed: int


def main() -> None:
    django.setup()
    from mlserve.cache.breaker import State
    from mlserve.cache.wiring import engine
    from predictions.messages import ScoreOptions, ScoreRequest
    from predictions.scoring import score_transaction

    cache, numbers = engine(), count()

    def score(pair: tuple[str, str], *, dry_run: bool) -> None:
        now = cache.clock.now()
        score_transaction(
            request=ScoreRequest(
                transaction_id=f"frozen-{next(numbers)}",
                occurred_at=datetime.fromtimestamp(now, UTC),
                customer_id=pair[0],
                merchant_id=pair[1],
                amount=20.0,
            ),
            options=ScoreOptions(dry_run=dry_run),
            client="bench",
            now=now,
        )

    def perform(task: Task) -> Timed:
        if task.heal:
            while cache.l2_breaker.state is not State.CLOSED or len(cache.pending):
                cache.clock.sleep(0.02)
            for pair in task.pairs:
                score(pair, dry_run=False)
            cache.filler.flush()
        timed = Timed([], 0)
        for number in range(task.scores):
            started = cache.clock.monotonic()
            try:
                score(task.pairs[number % len(task.pairs)], dry_run=True)
            except Exception:
                timed.failed += 1
            timed.ms.append((cache.clock.monotonic() - started) * 1000)
        if not task.heal:
            for pair in task.pairs:
                try:
                    score(pair, dry_run=False)
                except Exception:
                    timed.failed += 1
        return timed

    say("ready")
    for message in told():
        answer: Any = perform(msgspec.convert(message, Task))
        say(answer)


if __name__ == "__main__":
    main()
