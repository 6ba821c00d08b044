"""A score that is counted behind: what becomes of it, and what it costs."""

from datetime import UTC, datetime

import pytest
import redis

from features import write_behind
from features.flush import flush_write_behind
from features.write_behind import Buffer
from mlserve.cache.clock import SystemClock
from tests.features.write_behind.conftest import AT, rows
from tests.fixtures.clock import ManualClock
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle


def test_a_score_is_counted_and_a_dry_run_or_a_repetition_is_not(world: World, broker: redis.Redis) -> None:
    """Seconds later, also for a merchant that nobody knew."""
    merchant = world.newcomer("merchant")
    request = world.request(merchant_id=merchant, amount=12.5)
    for options in ("", "", "dry_run=true"):
        assert world.post(request, options).status == 200
    assert world.score(options="", merchant_id=merchant, amount=2.0).status == 200
    assert world.score(options="dry_run=true", merchant_id=merchant).status == 200
    assert merchant not in rows()
    write_behind.append_now()
    now = datetime.now(UTC)
    flush_write_behind(now=now)
    scores, last_at, amount = rows()[merchant]
    assert (scores, amount) == (2, 14.5)
    assert now.timestamp() - 20 < last_at <= now.timestamp()


@pytest.mark.quiet
def test_scores_do_not_notice_that_the_broker_is_away(
    world: World, broker: redis.Redis, valkey_broker: ServerHandle
) -> None:
    """Frozen, the worst way to be away: no score waits for it, and all are counted when it is back."""
    merchant = world.newcomer("merchant")
    world.score(options="", merchant_id=merchant)
    valkey_broker.freeze()
    answers = [world.score(options="", merchant_id=merchant) for _ in range(20)]
    assert [answer.status for answer in answers] == [200] * 20
    assert sorted(answer.seconds for answer in answers)[10] < 0.25
    valkey_broker.thaw()
    write_behind.append_now()
    flush_write_behind(now=datetime.now(UTC))
    assert rows()[merchant][0] == 21


@pytest.mark.quiet
def test_counting_a_score_is_cheap() -> None:
    """Some microseconds at most, on a busy machine; about one on an idle one."""
    buffer, clock = Buffer(ManualClock()), SystemClock()
    started = clock.monotonic()
    for number in range(100_000):
        buffer.note(f"m{number % 100}", 1.0, AT)
    assert (clock.monotonic() - started) / 100_000 < 10e-6
