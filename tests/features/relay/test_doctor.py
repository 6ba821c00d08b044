"""What the doctor says of the relay."""

import time

import msgspec
import redis

from features.diagnosis import diagnose_relay
from mlserve.cache import wiring
from mlserve.platform.diagnosis import Level
from tests.features.relay.conftest import WM, make_relay, mark_in
from tests.fixtures.servers import ServerHandle


def test_the_doctor_sees_whether_a_relay_runs(empty: redis.Redis, valkey_cache: ServerHandle) -> None:
    """By the watermark: none, a new one, one that is two seconds old, a cache that does not answer."""
    wiring.reset()

    def finding() -> tuple[Level, str]:
        (found,) = diagnose_relay()
        return found.level, found.detail

    assert finding() == (Level.WARN, "1 of 1 watermarks are missing")
    relay = make_relay()
    relay.tick()
    level, detail = finding()
    assert (level, f"by relay {relay.name}" in detail) == (Level.OK, True)
    old = msgspec.structs.replace(mark_in(empty), safe_time=time.time() - 2)
    empty.set(WM, old.pack())
    assert finding()[0] is Level.WARN
    valkey_cache.kill()
    assert finding() == (Level.WARN, "not examined: the cache does not answer")
    wiring.reset()
