"""`python -m benchmarks.freshness_writer`: commits changes of feature rows behind the application's back.

A child of `freshness.py`. It writes by plain SQL, as a build, a migration or a person at psql does; on one side it then
deletes the copy in L2, as whoever writes is told to where nothing is proven. It has an engine for that and no L1 that
anybody reads.
"""

from random import Random
from typing import Any

import django
import msgspec
import psycopg

from benchmarks.child import say, told
from benchmarks.freshness_lag import Write
from benchmarks.freshness_reader import ENTITY, GROUP, KEYS, id_of
from mlserve.cache.clock import SystemClock
from mlserve.settings import env

WRITES_A_SECOND = 100.0
_UPDATE = """
UPDATE features_featurerow SET "values" = %s, as_of = now() WHERE "group" = %s AND entity_id = %s RETURNING version
"""
_INSERT = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
SELECT %s, id, '{0}', now() FROM unnest(%s::text[]) AS id
"""


class Task(msgspec.Struct, frozen=True):
    """Writes to the keys of `side` for so many seconds. `delete`: the copy in L2 as well, after each commit."""

    side: str
    seconds: float
    delete: bool = False


class Writer:
    """Over one session."""

    def __init__(self) -> None:
        self._session: psycopg.Connection[Any] = psycopg.connect(env.DATABASE_URL, autocommit=True)
        self._clock = SystemClock()
        self._random = Random(1)
        self._number = 0.0

    def make_rows(self, side: str) -> None:
        self._session.execute(_INSERT, (GROUP, [id_of(side, key) for key in range(KEYS)]))

    def run(self, task: Task) -> list[Write]:
        """What was committed; each key is written about as often as any other."""
        writes: list[Write] = []
        began = self._clock.monotonic()
        while (due := began + len(writes) / WRITES_A_SECOND) < began + task.seconds:
            self._clock.sleep(max(0.0, due - self._clock.monotonic()))
            writes.append(self._write(task))
        return writes

    def _write(self, task: Task) -> Write:
        key = self._random.randrange(KEYS)
        self._number += 1
        cursor = self._session.execute(_UPDATE, ([self._number], GROUP, id_of(task.side, key)), prepare=True)
        acknowledged = self._clock.monotonic()
        ((version,),) = cursor.fetchall()
        if task.delete:
            self._delete(task.side, key)
        return Write(key, version, acknowledged)

    def _delete(self, side: str, key: int) -> None:
        from mlserve.cache.keys import Key
        from mlserve.cache.wiring import engine

        engine().pending.drop([Key(ENTITY, id_of(side, key), GROUP)])


def main() -> None:
    django.setup()
    writer = Writer()
    say("ready")
    for message in told():
        if isinstance(message, str):
            writer.make_rows(message)
            say("made")
        else:
            say(writer.run(msgspec.convert(message, Task)))


if __name__ == "__main__":
    main()
