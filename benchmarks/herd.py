"""`stampede`: a thousand readers in four processes who want one key of which no fresh copy exists.

`cold`: no tier has it. `warm`: L2 has a copy past its limit. The other side is the same cascade with nothing that
coordinates loads: who misses loads, as cache-aside does.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import msgspec
import psycopg

from benchmarks.child import Child, child
from benchmarks.contest import BenchmarkFailed, Contest, Progress, Side
from benchmarks.herd_reader import FRESH_FOR_S, GROUP, Outcome, Stampede
from benchmarks.own_servers import own_servers
from benchmarks.ratio import Compare, Target

PROCESSES, THREADS = 4, 250
_MERCHANTS = 500
"""One for each stampede; more than any run makes."""


class _Herds:
    """The processes, and which merchants are still unread."""

    def __init__(self, readers: list[Child]) -> None:
        self._readers = readers
        self.worst_s = 0.0
        self._numbers = count()

    def stampede(self, *, protected: bool, warm: bool) -> int:
        """Reads of Postgres that it took."""
        merchant = f"herd-{next(self._numbers)}"
        for place, reader in enumerate(self._readers):
            copy_of = FRESH_FOR_S + 30 if warm and place == 0 else None
            reader.tell(Stampede(merchant, protected, copy_of))
            # One after the other, so that the copy is there before anybody else may look.
            if reader.hear() != "armed":
                raise BenchmarkFailed("stampede: a reader is not where it should be")
        for reader in self._readers:
            reader.tell("go")
        outcomes = [msgspec.convert(reader.hear(), Outcome) for reader in self._readers]
        missing = PROCESSES * THREADS - sum(outcome.answered for outcome in outcomes)
        if missing and protected:  # without protection the cap on reads of Postgres leaves some with nothing
            raise BenchmarkFailed(f"stampede: {missing} readers got no value")
        self.worst_s = max(outcome.worst_s for outcome in outcomes)
        return sum(outcome.loads for outcome in outcomes)

    def side(self, *, protected: bool, warm: bool) -> Side:
        def measure(_seconds: float) -> float:
            return float(self.stampede(protected=protected, warm=warm))

        return measure


@contextmanager
def open_stampede(progress: Progress) -> Iterator[list[Contest]]:
    """Some fifteen seconds of preparation: servers, a database, four processes."""
    progress("start servers and readers", 0.0)
    with own_servers() as (_servers, environment), ExitStack() as stack:
        log = Path(environment["MLSERVE_VAR_DIR"]) / "herd.log"
        with child("benchmarks.migrated", environment=environment, log=log) as migrations:
            migrations.hear()
        _make_merchants(environment["DATABASE_URL"])
        readers = [
            stack.enter_context(child("benchmarks.herd_reader", str(THREADS), environment=environment, log=log))
            for _ in range(PROCESSES)
        ]
        for reader in readers:
            reader.hear()
        herds = _Herds(readers)
        yield [
            Contest(
                name=f"stampede-{name}",
                ours_is=f"{PROCESSES * THREADS} readers in {PROCESSES} processes, {about}: single-flight and lease",
                other_is="the same readers and the same cascade, without either: whoever misses loads",
                unit="loads",
                compare=Compare.OURS,
                target=Target(1, at_most=True),
                ours=herds.side(protected=True, warm=warm),
                other=herds.side(protected=False, warm=warm),
            )
            for name, warm, about in (("cold", False, "no copy anywhere"), ("warm", True, "an expired copy in L2"))
        ]


def _make_merchants(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            """
            INSERT INTO features_featurerow ("group", entity_id, "values", version, as_of)
            SELECT %s, 'herd-' || number, '{1,2,3,4,5,6}', 0, now() FROM generate_series(0, %s) AS number
            """,
            (GROUP, _MERCHANTS),
        )
