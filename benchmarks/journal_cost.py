"""`journal-cost`: what the journal takes from a writer's throughput, by pgbench.

Both sides update rows of the same table with the same statement and draw versions in the same trigger; one of them with
the trigger that writes the journal and one without. One row a commit is what a score does, five hundred what a build
does.

The honest setting is that of a server with data to lose: each commit waits for the disk, and several writers are at
work. A line of its own shows the worst case, one writer on a server that never waits for its disk, where nothing hides
what the trigger costs the processor.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.child import child
from benchmarks.contest import BenchmarkFailed, Contest, Progress, Side
from benchmarks.own_servers import own_servers, postgres_program
from benchmarks.ratio import Compare, Target

ROWS = 10_000
ROWS_OF_A_BUILD = 500
WRITERS = 4
_FIRST_COMMITS = 10
"""Of each writer, to learn how many fit into a round."""
_LIMIT_S = 300.0
_LEAST_SHARE = 0.7
_ONE_ROW = r"""
\set number random(0, :rows - 1)
UPDATE features_featurerow SET "values" = "values", as_of = now()
WHERE "group" = 'merchant_risk' AND entity_id = 'm' || :number
"""
# Each writer has slices of its own: two that want the same rows in another order would deadlock.
_SLICE = r"""
\set number random(0, :slices / :clients - 1) * :clients + :client_id
UPDATE features_featurerow SET "values" = "values", as_of = now()
WHERE "group" = 'merchant_risk' AND entity_id = ANY ((SELECT ids FROM bench_slice WHERE number = :number)::text[])
"""
_WORLD = f"""
INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
SELECT 'merchant_risk', 'm' || number, '{{1,2,3,4,5,6}}', now() FROM generate_series(0, {ROWS} - 1) AS number;
CREATE TABLE bench_slice AS
SELECT number / {ROWS_OF_A_BUILD} AS number, array_agg('m' || number) AS ids
FROM generate_series(0, {ROWS} - 1) AS number GROUP BY 1;
CREATE UNIQUE INDEX ON bench_slice (number);
TRUNCATE features_journal
"""


@dataclass(frozen=True, kw_only=True)
class _Server:
    """`session`: of ours, to prepare and to check. `environment`: of a program that connects there."""

    session: "psycopg.Connection[Any]"
    environment: Mapping[str, str]
    pgbench: Path
    folder: Path


class _Writers:
    """`writers` sessions of pgbench at once, each of which updates `rows` rows a commit."""

    def __init__(self, server: _Server, *, writers: int, rows: int) -> None:
        self._server = server
        self._writers = writers
        self._rows = rows
        self._commits_a_second = 0.0
        self._journaled = 0
        self._script = server.folder / f"journal-cost-{rows}.sql"
        self._script.write_text(_ONE_ROW if rows == 1 else _SLICE, encoding="utf-8")

    def side(self, *, journal: bool) -> Side:
        """Rows a second."""
        state = "ENABLE ALWAYS" if journal else "DISABLE"

        def measure(seconds: float) -> float:
            self._server.session.execute(f"ALTER TABLE features_featurerow {state} TRIGGER features_journal_update")
            commits = max(_FIRST_COMMITS, round(self._commits_a_second * seconds / self._writers))
            self._commits_a_second = self._pgbench(commits)
            self._journaled += commits * self._writers * self._rows if journal else 0
            return self._commits_a_second * self._rows

        return measure

    def check(self) -> None:
        """The journal tells each row that was written with it, and no other."""
        ((told,),) = self._server.session.execute("SELECT count(*) FROM features_journal_row").fetchall()
        self._server.session.execute("TRUNCATE features_journal")
        if told != self._journaled:
            raise BenchmarkFailed(f"journal-cost: the journal tells {told} rows, {self._journaled} were written")

    def _pgbench(self, commits: int) -> float:
        """Commits a second, without the time to connect."""
        command: list[str | Path] = [
            *(self._server.pgbench, "--no-vacuum", "--protocol=prepared", f"--file={self._script}"),
            *(f"--client={self._writers}", f"--transactions={commits}"),
            *(f"--define=rows={ROWS}", f"--define=slices={ROWS // ROWS_OF_A_BUILD}"),
            f"--define=clients={self._writers}",
        ]
        try:
            done = subprocess.run(
                command, env=self._server.environment, capture_output=True, text=True, timeout=_LIMIT_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            told = str(getattr(error, "stderr", "") or "").strip()[-500:]
            raise BenchmarkFailed(f"journal-cost: pgbench: {error}: {told}") from error
        rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
        wanted = commits * self._writers
        if rate is None or f"actually processed: {wanted}/{wanted}" not in done.stdout:
            raise BenchmarkFailed(f"journal-cost: pgbench did not make {wanted} commits:\n{done.stdout[-500:]}")
        return float(rate[1])


@contextmanager
def _server(*, durable: bool) -> Iterator[_Server]:
    with own_servers(("postgres",), durable=durable) as (servers, environment):
        folder = Path(environment["MLSERVE_VAR_DIR"])
        with child("benchmarks.migrated", environment=environment, log=folder / "journal-cost.log") as migrations:
            migrations.hear()
        address = conninfo_to_dict(environment["DATABASE_URL"])
        with closing(psycopg.connect(environment["DATABASE_URL"], autocommit=True)) as session:
            session.execute(_WORLD)
            session.execute("VACUUM ANALYZE features_featurerow")
            yield _Server(
                session=session,
                environment={
                    "PGHOST": str(address["host"]),
                    "PGPORT": str(address["port"]),
                    "PGUSER": str(address["user"]),
                    "PGPASSWORD": str(address["password"]),
                    "PGDATABASE": str(address["dbname"]),
                },
                pgbench=postgres_program(servers, "pgbench"),
                folder=folder,
            )


@contextmanager
def open_journal_cost(progress: Progress) -> Iterator[list[Contest]]:
    """Some twenty seconds of preparation: two PostgreSQL of its own."""
    progress("start two PostgreSQL", 0.0)
    with ExitStack() as stack:
        durable, quick = (stack.enter_context(_server(durable=durable)) for durable in (True, False))
        yield [
            _contest(f"{name}{suffix}", f"{rows} a commit, {setting}", _Writers(server, writers=writers, rows=number))
            for server, writers, suffix, setting in (
                (durable, WRITERS, "", f"{WRITERS} writers, each commit on disk before it is acknowledged"),
                (quick, 1, "-cpu", "one writer, the disk never waited for: what the processor does, and nothing else"),
            )
            for name, rows, number in (
                ("journal-cost", "one row", 1),
                ("journal-cost-build", f"{ROWS_OF_A_BUILD} rows", ROWS_OF_A_BUILD),
            )
        ]


def _contest(name: str, what: str, writers: _Writers) -> Contest:
    return Contest(
        name=name,
        ours_is=f"updates of feature rows with the trigger that writes the journal, {what}",
        other_is="the same updates without it",
        unit="rows/s",
        compare=Compare.OURS_OVER_OTHER,
        target=Target(_LEAST_SHARE),
        ours=writers.side(journal=True),
        other=writers.side(journal=False),
        check=writers.check,
    )
