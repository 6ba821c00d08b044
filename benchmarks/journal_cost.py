"""`journal-cost`: what the journal takes from a writer's throughput.

Both sides update rows of the same table with the same statement and draw versions in the same trigger; one of them with
the trigger that writes the journal and one without. One row a commit is what a score does, five hundred what a build
does. The server does not wait for its disk: with a disk to wait for, the difference would be smaller.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg

from benchmarks.child import child
from benchmarks.contest import BenchmarkFailed, Contest, Progress, Side
from benchmarks.own_servers import own_servers
from benchmarks.ratio import Compare, Target

ROWS = 10_000
ROWS_OF_A_BUILD = 500
_COMMITS_BETWEEN_LOOKS = 5
_LEAST_SHARE = 0.7
_UPDATE = """
UPDATE features_featurerow SET "values" = "values", as_of = now()
WHERE "group" = 'merchant_risk' AND entity_id = ANY(%s)
"""


class _Writer:
    """One session, which updates `rows` rows a commit."""

    def __init__(self, session: "psycopg.Connection[Any]", rows: int) -> None:
        self._session = session
        self._rows = rows
        self._numbers = count()
        self._journaled = 0

    def side(self, *, journal: bool) -> Side:
        """Rows a second."""
        state = "ENABLE ALWAYS" if journal else "DISABLE"

        def measure(seconds: float) -> float:
            self._session.execute(f"ALTER TABLE features_featurerow {state} TRIGGER features_journal_update")
            started, rows = perf_counter(), 0
            while not rows or perf_counter() - started < seconds:
                for _ in range(_COMMITS_BETWEEN_LOOKS):
                    self._commit()
                    rows += self._rows
            elapsed = perf_counter() - started
            self._journaled += rows if journal else 0
            return rows / elapsed

        return measure

    def check(self) -> None:
        """The journal has a line for each row that was written with it, and for no other."""
        ((lines,),) = self._session.execute("SELECT count(*) FROM features_journal").fetchall()
        self._session.execute("TRUNCATE features_journal")
        if lines != self._journaled:
            raise BenchmarkFailed(f"journal-cost: {lines} lines of the journal for {self._journaled} rows")

    def _commit(self) -> None:
        first = next(self._numbers) * self._rows % ROWS
        ids = [f"m{number}" for number in range(first, first + self._rows)]
        self._session.execute(_UPDATE, (ids,), prepare=True)


@contextmanager
def open_journal_cost(progress: Progress) -> Iterator[list[Contest]]:
    """Some ten seconds of preparation: a PostgreSQL of its own."""
    progress("start a PostgreSQL", 0.0)
    with own_servers() as (_servers, environment):
        log = Path(environment["MLSERVE_VAR_DIR"]) / "journal-cost.log"
        with child("benchmarks.migrated", environment=environment, log=log) as migrations:
            migrations.hear()
        with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as session:
            session.execute(_ROWS, (ROWS,))
            session.execute("TRUNCATE features_journal")
            session.execute("VACUUM ANALYZE features_featurerow")
            yield [
                _contest("journal-cost", "one row a commit", _Writer(session, 1)),
                _contest("journal-cost-build", f"{ROWS_OF_A_BUILD} rows a commit", _Writer(session, ROWS_OF_A_BUILD)),
            ]


_ROWS = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
SELECT 'merchant_risk', 'm' || number, '{1,2,3,4,5,6}', now() FROM generate_series(0, %s - 1) AS number
"""


def _contest(name: str, what: str, writer: _Writer) -> Contest:
    return Contest(
        name=name,
        ours_is=f"updates of feature rows, {what}, with the trigger that writes the journal",
        other_is="the same updates without it",
        unit="rows/s",
        compare=Compare.OURS_OVER_OTHER,
        target=Target(_LEAST_SHARE),
        ours=writer.side(journal=True),
        other=writer.side(journal=False),
        check=writer.check,
    )
