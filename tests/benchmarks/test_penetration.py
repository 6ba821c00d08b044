"""The benchmark of unknown ids with a tiny budget: that it runs, what it says, and that it leaves nothing."""

import pytest
import redis
from django.db import connection

from benchmarks import contest
from benchmarks.penetration import open_penetration
from features.progress import silent
from mlserve.cache import wiring
from tests.fixtures.waiting import until


@pytest.mark.django_db(transaction=True)
@pytest.mark.torture
def test_the_penetration_benchmark_runs_and_leaves_nothing(redis_client: redis.Redis) -> None:
    """Without the filter every unknown id is a load; with it, most rounds have none. Redis forgets by itself."""
    with open_penetration(silent) as contests:
        loads, time = (contest.run(each, seconds=0.2, progress=silent, rounds=2) for each in contests)
    assert (loads.name, time.name) == ("penetration-loads", "penetration-time")
    assert loads.other >= 1_000_000 and 0 < loads.ours < 100_000
    assert time.other > time.ours > 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_class WHERE relname = 'features_featurerow'")
        assert cursor.fetchone() == (1,)
    wiring.engine().filler.flush()
    until(lambda: not redis_client.keys("mlserve:*:v:*"))
