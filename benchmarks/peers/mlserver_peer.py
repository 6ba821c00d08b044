"""MLServer with the estimator that the served artifact was made from, behind its V2 endpoint.

The inputs are those that a score derives, as the float32 that the artifact sees: MLServer looks nothing up. Inference
runs in the server's own process, which is quicker than its pool of one worker; no access log, metrics or compression.
With `batched`, adaptive batching puts rows that arrive together through the estimator at once, as its guide advises for
throughput; without, it is MLServer as it comes.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contest import BenchmarkFailed, Progress
from benchmarks.http_load import Connection, post
from benchmarks.peers.server import in_requests, peer_environment, running, some_of
from benchmarks.score_service import HOST, THREADS, free_port

_MODEL = "fraud"
_RUNTIME = Path(__file__).with_name("mlserver_runtime.py")
_SAME_WITHIN = 1e-6
_BATCH_WAIT_S = 0.002
"""How long a row waits for others; all connections together make a whole batch, so it seldom does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What this project derived and answered for one transaction."""

    features: tuple[float, ...]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MLServer:
    """A running model server."""

    port: int
    scored: Sequence[Scored]

    def requests(self, size: int) -> list[bytes]:
        """For all of `scored` in their order, `size` in each."""
        return [_request(rows) for rows in in_requests(self.scored, size=size)]

    def check(self, size: int) -> None:
        """Raises BenchmarkFailed unless it gives a score for each row, and they are ours."""
        with closing(Connection(HOST, self.port)) as connection:
            for rows in some_of(in_requests(self.scored, size=size)):
                scores = scores_in(connection.ask(_request(rows)), rows=size)
                for found, row in zip(scores, rows, strict=True):
                    if not abs(found - row.score) <= _SAME_WITHIN:
                        raise BenchmarkFailed(f"peers: MLServer gives a score of {found} where ours is {row.score}")


def scores_in(body: bytes, *, rows: int) -> list[float]:
    """The probabilities of fraud in an answer about `rows` rows. Raises BenchmarkFailed if it is anything else."""
    outputs = msgspec.json.decode(body)["outputs"]
    found = [(output["name"], output["shape"], len(output["data"])) for output in outputs]
    if found != [("predict_proba", [rows, 2], 2 * rows)]:
        raise BenchmarkFailed(f"peers: MLServer answers {rows} rows with {found}")
    return [float(probability) for probability in outputs[0]["data"][1::2]]


def settings(*, port: int, grpc_port: int) -> dict[str, Any]:
    """`settings.json`."""
    return {
        "debug": False,
        "host": HOST,
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_endpoint": None,
        "gzip_enabled": False,
        "parallel_workers": 0,
    }


def model_settings(estimator: Path, *, batched: bool) -> dict[str, Any]:
    """`model-settings.json`. A batch is at most what all connections ask for at once."""
    batching = {"max_batch_size": THREADS, "max_batch_time": _BATCH_WAIT_S} if batched else {}
    return {
        "name": _MODEL,
        "implementation": f"{_RUNTIME.stem}.SkopsModel",
        "parameters": {"uri": str(estimator), "extra": {"predict_fn": "predict_proba"}},
        **batching,
    }


@contextmanager
def mlserver_server(
    programs: Path, *, folder: Path, estimator: Path, scored: Sequence[Scored], batched: bool, progress: Progress
) -> Iterator[MLServer]:
    """Serves `estimator`, an archive of skops. Raises BenchmarkFailed."""
    progress("start MLServer", 0.0)
    port = free_port()
    shutil.copy(_RUNTIME, folder)
    for name, content in (
        ("settings.json", settings(port=port, grpc_port=free_port())),
        ("model-settings.json", model_settings(estimator, batched=batched)),
    ):
        (folder / name).write_bytes(msgspec.json.encode(content))
    with running(
        "MLServer",
        [str(programs / "mlserver"), "start", "."],
        folder=folder,
        environment=peer_environment(folder),
        port=port,
        ready=f"/v2/models/{_MODEL}/ready",
    ):
        yield MLServer(port=port, scored=scored)


def _request(rows: Sequence[Scored]) -> bytes:
    tensor = {
        "name": "features",
        "shape": [len(rows), len(rows[0].features)],
        "datatype": "FP32",
        "data": [value for row in rows for value in row.features],
    }
    body = msgspec.json.encode({"inputs": [tensor]})
    return post(path=f"/v2/models/{_MODEL}/infer", host=HOST, key="none", body=body)
