"""A watermark in L2, as a relay leaves it."""

import time

from redis import Redis

from mlserve.cache.watermark import Watermark, name_of


def put_watermark(client: Redis, *, age_s: float) -> None:
    client.set(name_of(0), Watermark(1, "731:739:", time.time() - age_s, "relay").pack())
