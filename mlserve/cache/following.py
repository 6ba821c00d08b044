"""What becomes of a key that another thread of the process looks for already: the wait, and what it brings.

Every thread has its own request: other ages allowed, other versions seen. What is good enough for one of them may be
too old for another, and the other way round.
"""

from collections.abc import Mapping

from mlserve.cache.clock import Clock
from mlserve.cache.keys import Key
from mlserve.cache.loading import WAIT_WITH_COPY_S
from mlserve.cache.search import Search
from mlserve.cache.singleflight import Flight

FOLLOW_S = 2.0
"""How long to wait for another thread's look, having nothing to serve: as long as its own waits can add up to."""


def follow(search: Search, flights: Mapping[Key, Flight], *, clock: Clock) -> tuple[list[Key], list[Key]]:
    """Takes what the flights bring. Returns the keys to look for alone, and those that nobody will bring."""
    search.stats.event("flight_joined", len(flights))
    joined = clock.monotonic()
    alone: list[Key] = []
    without: list[Key] = []
    for key, flight in flights.items():
        patience_s = WAIT_WITH_COPY_S if search.serves_meanwhile(key) else FOLLOW_S
        if not flight.wait(max(0.0, joined + patience_s - clock.monotonic())):
            if search.serves_meanwhile(key):
                search.refreshing.add(key)
                without.append(key)
            else:
                alone.append(key)
            continue
        search.now = max(search.now, clock.now())
        _take(search, key, flight, alone, without)
    return alone, without


def _take(search: Search, key: Key, flight: Flight, alone: list[Key], without: list[Key]) -> None:
    brought, past_limit = flight.brought.get(key), flight.past_limit.get(key)
    if brought is None and past_limit is not None:
        if search.verdict(key, past_limit[0], life_share=search.life_share(key)).serves:
            brought = past_limit  # too old for that thread's request and good enough for this one
        else:
            search.keep_newest(key, *past_limit)
    if brought is None:
        if flight.refreshing and search.has_spare(key) and not search.serves_meanwhile(key):
            alone.append(key)  # what serves that thread's request until then is too old for this one
            return
        if flight.refreshing:
            search.refreshing.add(key)
        else:
            search.source_failed = True
        without.append(key)
    elif not search.verdict(key, brought[0]).serves:
        search.keep_newest(key, *brought)
        alone.append(key)  # good enough for that thread's request and too old for this one
    else:
        search.found[key] = brought
        if brought[0].values is not None:
            search.stats.late()[key.group].append(max(0.0, search.now - brought[0].as_of))
