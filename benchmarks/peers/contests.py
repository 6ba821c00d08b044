"""`peers`: warm `POST /v1/scores` beside Feast's feature server and MLServer, one process each, the same client.

A score reads fifty features and runs the model. Feast answers with those features only, out of the same Valkey, and
MLServer with the model's score only, for inputs that it is given. Before anything is measured, and after it, their
answers are compared with this project's.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.child import child
from benchmarks.contest import Contest, Progress
from benchmarks.http_load import Connection
from benchmarks.peers.environment import installed
from benchmarks.peers.feast_peer import feast_server
from benchmarks.peers.mlserver_peer import Scored, mlserver_server
from benchmarks.peers.server import side
from benchmarks.peers.world import ESTIMATOR, PeerWorld
from benchmarks.ratio import Compare, Target
from benchmarks.score_service import HOST, THREADS, ScoreService, score_service
from benchmarks.scores import SCORES, Scores
from mlserve.settings import env

FEAST_TARGET, MLSERVER_TARGET = Target(10), Target(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Other:
    name: str
    is_: str
    target: Target
    port: int
    requests: list[bytes]
    check: Callable[[], None]


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
        yield [
            Contest(
                name=f"peers-{other.name}{suffix}",
                ours_is=f"POST {SCORES}{what}; granian, 1 process, {THREADS} threads, {THREADS} connections",
                other_is=other.is_,
                unit="requests/s",
                compare=Compare.OURS_OVER_OTHER,
                target=other.target,
                ours=scores.side(next_request),
                other=side(other.port, other.requests),
                prepare=scores.warm,
                check=lambda other=other: _check(scores, other),  # type: ignore[misc]
            )
            for other in others
            for suffix, what, next_request in (
                ("", "?dry_run=true, warm", scores.dry_run),
                ("-journal", ", warm, each decision committed to PostgreSQL", scores.journaled),
            )
        ]


def _check(scores: Scores, other: _Other) -> None:
    scores.check_warm()
    other.check()


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
        others = [
            _Other(
                name="feast",
                is_="Feast's POST /get-online-features, 50 features of the same two entities; 1 worker, same Valkey",
                target=FEAST_TARGET,
                port=feast.port,
                requests=list(feast.requests),
                check=feast.check,
            )
        ]
        scored = _scored(service, scores)
        for name, how in (("mlserver", "a row at a time"), ("mlserver-batching", f"up to {THREADS} rows at a time")):
            mlserver = stack.enter_context(
                mlserver_server(
                    programs["mlserver"],
                    folder=folders[name],
                    estimator=root / ESTIMATOR,
                    scored=scored,
                    batched=name != "mlserver",
                    progress=progress,
                )
            )
            others.append(
                _Other(
                    name=name,
                    is_=f"MLServer's POST /v2/models/fraud/infer, the same model in scikit-learn; 1 process, {how}",
                    target=MLSERVER_TARGET,
                    port=mlserver.port,
                    requests=list(mlserver.requests),
                    check=mlserver.check,
                )
            )
        yield others


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
