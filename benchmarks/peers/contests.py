"""`peers`: warm scores beside Feast's feature server and MLServer, one process each, the same client.

A score reads fifty features and runs the model. Feast answers with those features only, out of the same Valkey, and
MLServer with the model's score only, for inputs that it is given. One `POST /v1/scores` stands beside one request about
one row, and 100 transactions in one `POST /v1/scores/batch` beside one request about 100 rows. Before anything is
measured, and after it, their answers are compared with this project's.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.child import child
from benchmarks.contest import Contest, Progress
from benchmarks.http_load import Connection
from benchmarks.peers.environment import installed
from benchmarks.peers.feast_peer import Feast, feast_server
from benchmarks.peers.mlserver_peer import MLServer, Scored, mlserver_server
from benchmarks.peers.server import side
from benchmarks.peers.world import ESTIMATOR, PeerWorld
from benchmarks.ratio import Compare, Target
from benchmarks.score_batch import AT_ONCE, BATCHES, SIZE, Batches
from benchmarks.score_service import HOST, THREADS, ScoreService, score_service
from benchmarks.scores import SCORES, Scores
from mlserve.settings import env

FEAST_TARGET, MLSERVER_TARGET = Target(10), Target(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ours:
    """`is_`: one of its requests, without its options."""

    scores: Scores | Batches
    is_: str
    unit: str
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Other:
    """`size`: the rows of each of its requests."""

    name: str
    is_: str
    target: Target
    peer: Feast | MLServer
    size: int

    def check(self) -> None:
        self.peer.check(self.size)


@contextmanager
def open_peers(progress: Progress) -> Iterator[list[Contest]]:
    """Installs the peers at the first call: some minutes, 750 MB. Makes data of its own, as `scores.py` does."""
    root = env.VAR_DIR / "peers"
    programs = {peer: installed(peer, root=root, progress=progress) for peer in ("feast", "mlserver")}
    with ExitStack() as stack:
        service = stack.enter_context(score_service(progress))
        scores = Scores(service)
        scores.warm()
        others = stack.enter_context(_others(programs, service, scores, progress))
        for other in others:
            other.check()
        ours = {
            1: _Ours(scores=scores, is_=f"POST {SCORES}", unit="requests/s", connections=THREADS),
            SIZE: _Ours(
                scores=Batches(service),
                is_=f"{SIZE} transactions in one POST {BATCHES}",
                unit="transactions/s",
                connections=AT_ONCE,
            ),
        }
        # Dry runs first: the journal's transactions make customers' lists longer, and what reads them slower.
        yield [_contest(ours[other.size], other, journal=journal) for journal in (False, True) for other in others]


def _contest(ours: _Ours, other: _Other, *, journal: bool) -> Contest:
    def check() -> None:
        ours.scores.check_warm()
        other.check()

    what = ", warm, each decision committed to PostgreSQL" if journal else "?dry_run=true, warm"
    next_request = ours.scores.journaled if journal else ours.scores.dry_run
    return Contest(
        name=f"peers-{other.name}{'-journal' if journal else ''}",
        ours_is=f"{ours.is_}{what}; granian, 1 process, {THREADS} threads, {ours.connections} connections",
        other_is=other.is_,
        unit=ours.unit,
        compare=Compare.OURS_OVER_OTHER,
        target=other.target,
        ours=ours.scores.side(next_request),
        other=side(other.peer.port, other.peer.requests(other.size), size=other.size),
        prepare=ours.scores.warm,
        check=check,
    )


@contextmanager
def _others(
    programs: dict[str, Path], service: ScoreService, scores: Scores, progress: Progress
) -> Iterator[list[_Other]]:
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlserve-peers-")))
        folders = {name: root / name for name in ("feast", "mlserver", "mlserver-batching")}
        for folder in folders.values():
            folder.mkdir()
        world = _world(service, root)
        feast = stack.enter_context(
            feast_server(
                programs["feast"],
                folder=folders["feast"],
                redis_url=service.environment["REDIS_CACHE_URL"],
                world=world,
                pairs=service.world.pairs,
                progress=progress,
            )
        )
        scored = _scored(service, scores)
        plain, batching = (
            stack.enter_context(
                mlserver_server(
                    programs["mlserver"],
                    folder=folders[name],
                    estimator=root / ESTIMATOR,
                    scored=scored,
                    batched=batched,
                    progress=progress,
                )
            )
            for name, batched in (("mlserver", False), ("mlserver-batching", True))
        )
        yield [
            _feast("feast", feast, "50 features of the same two entities", size=1),
            _mlserver("mlserver", plain, "a row at a time", size=1),
            _mlserver("mlserver-batching", batching, f"up to {THREADS} rows at a time", size=1),
            _feast("feast-batch", feast, f"50 features of each of {SIZE} pairs of entities in one request", size=SIZE),
            _mlserver("mlserver-batch", plain, f"{SIZE} rows in one request", size=SIZE),
        ]


def _feast(name: str, peer: Feast, what: str, *, size: int) -> _Other:
    is_ = f"Feast's POST /get-online-features, {what}; 1 worker, same Valkey"
    return _Other(name=name, is_=is_, target=FEAST_TARGET, peer=peer, size=size)


def _mlserver(name: str, peer: MLServer, how: str, *, size: int) -> _Other:
    is_ = f"MLServer's POST /v2/models/fraud/infer, the same model in scikit-learn; 1 process, {how}"
    return _Other(name=name, is_=is_, target=MLSERVER_TARGET, peer=peer, size=size)


def _world(service: ScoreService, root: Path) -> PeerWorld:
    customers, merchants = (list(dict.fromkeys(ids)) for ids in zip(*service.world.pairs, strict=True))
    with child("benchmarks.peers.world", str(root), environment=service.environment, log=root / "world.log") as reader:
        said = reader.ask({"customer": customers, "merchant": merchants})
    return msgspec.convert(said, PeerWorld)


def _scored(service: ScoreService, scores: Scores) -> list[Scored]:
    found = []
    with closing(Connection(HOST, service.port)) as connection:
        for number in range(len(service.world.pairs)):
            answer = msgspec.json.decode(
                connection.ask(scores.request(f"{SCORES}?dry_run=true&include=features", number))
            )
            found.append(Scored(features=tuple(one["value"] for one in answer["features"]), score=answer["score"]))
    return found
