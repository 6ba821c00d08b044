"""The web process is killed with -9 right after it has acknowledged a decision."""

from predictions import spool
from predictions.delivery import deliver_spooled
from predictions.models import Decision
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.fixtures.web_process import web_process


def test_an_acknowledged_decision_survives_the_process(world: World, postgres: ServerHandle) -> None:
    """With Postgres it is there at once; without, the spool has it, and another process delivers what is left there."""
    with web_process() as web:
        committed = web.post(world.request())
        postgres.stop()
        spooled = web.post(world.request())
        web.kill()
    assert spooled["degraded_reasons"] == ["decision_spooled"]
    postgres.start()
    until(lambda: world.stored(committed["transaction_id"]))
    assert world.stored(committed["transaction_id"]) == committed
    assert world.stored(spooled["transaction_id"]) is None
    assert deliver_spooled() == 1
    assert world.stored(spooled["transaction_id"]) == spooled
    assert spool.pending_files() == []
    assert Decision.objects.filter(pk__in=[committed["transaction_id"], spooled["transaction_id"]]).count() == 2
