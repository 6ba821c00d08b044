"""`score-parts`: the processor's time for one warm dry-run score, part by part, and for the empty view beside it.

In one process and one thread, through the WSGI application, without a server and without HTTP: the thread's own
processor time, so that what else runs on the machine is not in it. A part is what a score takes less when the part's
functions are replaced by ones that return what they returned before, measured by turns with the score as it is. Nothing
is timed inside a score: a clock would cost as much as some of the parts.

What that does not promise: parts do not add up to the whole. Each takes the processor's caches from the others, and
what stands between them is nobody's: `rest`. A dry run looks for no earlier decision, asks no tier below L1 and counts
nothing in the engine, so these have no line. Differences of a few microseconds are within the noise of a short run.

Requests of the API pass by the middleware of pages (`mlserve/api/page_middleware.py`), the empty view with them; what
it takes with all the middleware that a Django project begins with stands in the last line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.child import Child, child
from benchmarks.contest import Contest, Figures, Progress
from benchmarks.ratio import Compare, Target
from benchmarks.score_parts_process import EMPTY, EMPTY_PAGE, PARTS, WHOLE, Sweeps, Task
from benchmarks.score_service import filled

_TARGET = Target(1.5, at_most=True)


class _Parts:
    """What was measured so far."""

    def __init__(self, process: Child) -> None:
        self._process = process
        self._sweeps: list[dict[str, float]] = []

    def whole(self, seconds: float) -> float:
        return self._measured(WHOLE, seconds)

    def empty(self, seconds: float) -> float:
        return self._measured(EMPTY, seconds)

    def figures(self) -> Figures:
        """Microseconds, in the order in which a request meets the parts."""
        whole = median(sweep[WHOLE] for sweep in self._sweeps)
        table, added = {}, 0.0
        for name in (EMPTY, *(part.name for part in PARTS)):
            part = next((part for part in PARTS if part.name == name), None)
            if part is None:
                taken = median(sweep[name] for sweep in self._sweeps)
            else:
                taken = median(sweep[part.of] - sweep[name] for sweep in self._sweeps)
            inside = part is not None and part.of == EMPTY
            table[f"of that: {name}" if inside else name] = taken
            added += 0 if inside else taken
        page = median(sweep[EMPTY_PAGE] for sweep in self._sweeps)
        return {"us": {**table, "all parts together": added, "rest": whole - added, WHOLE: whole, EMPTY_PAGE: page}}

    def _measured(self, what: str, seconds: float) -> float:
        sweeps = msgspec.convert(self._process.ask(Task(seconds)), Sweeps).us
        self._sweeps += sweeps
        return median(sweep[what] for sweep in sweeps)


@contextmanager
def open_score_parts(progress: Progress) -> Iterator[list[Contest]]:
    """Makes data of its own in a database of its own: some ten seconds."""
    with filled(progress) as (environment, world):
        log = Path(environment["MLSERVE_VAR_DIR"]) / "parts.log"
        with child("benchmarks.score_parts_process", environment=environment, log=log) as process:
            process.ask(world)
            parts = _Parts(process)
            yield [
                Contest(
                    name="score-parts",
                    ours_is="POST /v1/scores?dry_run=true, warm: the WSGI application in one thread, processor time",
                    other_is="POST to an empty REST framework view without a key, in the same way",
                    unit="us",
                    compare=Compare.OURS_OVER_OTHER,
                    target=_TARGET,
                    ours=parts.whole,
                    other=parts.empty,
                    figures=parts.figures,
                )
            ]
