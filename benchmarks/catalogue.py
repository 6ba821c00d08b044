"""Which benchmarks there are, in the order in which they run."""

from benchmarks.artifact import open_artifact
from benchmarks.avalanche import open_avalanche
from benchmarks.contest import Benchmark
from benchmarks.cost import open_cost
from benchmarks.freshness import open_freshness
from benchmarks.frozen import open_frozen
from benchmarks.herd import open_stampede
from benchmarks.journal_cost import open_journal_cost
from benchmarks.l1_hit import open_l1
from benchmarks.l2_read import open_l2
from benchmarks.memory import open_memory
from benchmarks.peers.contests import open_peers
from benchmarks.penetration import open_penetration
from benchmarks.proof import open_proof
from benchmarks.score_batch import open_batch
from benchmarks.score_latency import open_latency
from benchmarks.score_overload import open_overload
from benchmarks.score_parts import open_score_parts
from benchmarks.scores import open_scores

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(name="l1", about="a hit in process memory, against Django's LocMemCache", open=open_l1),
        Benchmark(name="l2", about="one read of all six groups from Redis, against a bare MGET", open=open_l2),
        Benchmark(name="stampede", about="a thousand readers of one key that nobody holds", open=open_stampede),
        Benchmark(name="frozen", about="what a frozen Valkey adds to a score", open=open_frozen),
        Benchmark(name="avalanche", about="ten thousand copies that expire together", open=open_avalanche),
        Benchmark(name="memory", about="bytes an entity takes in Redis, against JSON and Feast", open=open_memory),
        Benchmark(name="cost", about="the price of a read by tier, and from when on it pays", open=open_cost),
        Benchmark(name="artifact", about="one row through ONNX, against scikit-learn", open=open_artifact),
        Benchmark(
            name="penetration", about="ids that never existed, against the same without a filter", open=open_penetration
        ),
        Benchmark(
            name="freshness",
            about="from a commit to its eviction in every process, against a TTL and delete-on-write",
            open=open_freshness,
        ),
        Benchmark(name="proof", about="reads that are proven fresh, against the same by age alone", open=open_proof),
        Benchmark(
            name="journal-cost",
            about="writes of feature rows, against the same without a journal",
            open=open_journal_cost,
        ),
        Benchmark(
            name="score", about="warm POST /v1/scores, against an empty view on the same server", open=open_scores
        ),
        Benchmark(name="score-parts", about="where the processor's time of a warm dry run goes", open=open_score_parts),
        Benchmark(name="latency", about="how long a score takes at half load", open=open_latency),
        Benchmark(name="batch", about="100 transactions in one call, against 100 single calls", open=open_batch),
        Benchmark(name="overload", about="ten times as many scores as can be given", open=open_overload),
        Benchmark(
            name="peers",
            about="scores beside Feast and MLServer, which it installs; runs only if it is named",
            open=open_peers,
            on_demand=True,
        ),
    )
}
