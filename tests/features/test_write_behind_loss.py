"""What a web process takes with it when it ends."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import redis

from features.definitions import MERCHANT_TRAFFIC
from features.flush import flush_write_behind
from features.models import FeatureRow
from features.write_behind import APPEND_EVERY_S, STREAM
from mlserve.console.figures import broker_client
from tests.fixtures.population import World
from tests.fixtures.web_process import web_process

SECONDS = 2.5
_LATE_S = 0.5
"""An append on a busy machine may begin late and take its time."""


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    with broker_client() as client:
        client.delete(STREAM)
        yield client
        client.delete(STREAM)


def _counted(merchant: str) -> int:
    flush_write_behind(now=datetime.now(UTC))
    row = FeatureRow.objects.filter(group=MERCHANT_TRAFFIC.name, entity_id=merchant).first()
    return int(row.values[0]) if row else 0


def _score_for(seconds: float, score: Callable[[], object]) -> list[float]:
    """The moments at which scores were acknowledged, counted from the end."""
    acknowledged = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        score()
        acknowledged.append(time.monotonic())
    return [time.monotonic() - moment for moment in acknowledged]


def test_a_process_that_is_stopped_takes_nothing_with_it(world: World, broker: redis.Redis) -> None:
    """It appends what it has before it ends."""
    merchant = world.newcomer("merchant")
    with web_process() as web:
        ages_s = _score_for(SECONDS, lambda: web.post(world.request(merchant_id=merchant)))
        web.stop()
    assert _counted(merchant) == len(ages_s)


@pytest.mark.quiet
def test_a_process_that_is_killed_loses_its_last_second_at_most(
    world: World, broker: redis.Redis, record_property: Callable[[str, object], None]
) -> None:
    """kill -9. Every score that was acknowledged earlier is counted, none is counted twice."""
    merchant = world.newcomer("merchant")
    with web_process() as web:
        ages_s = _score_for(SECONDS, lambda: web.post(world.request(merchant_id=merchant)))
        web.kill()
    lost = len(ages_s) - _counted(merchant)
    recent = sum(age_s <= APPEND_EVERY_S + _LATE_S for age_s in ages_s)
    record_property("scores_lost", lost)
    print(
        f"kill -9 lost {lost} of {len(ages_s)} scores; {recent} were given in the last {APPEND_EVERY_S + _LATE_S:g} s"
    )
    assert 0 <= lost <= recent < len(ages_s)
