"""`cost`: what a read through each tier costs in money, and from which hit rate on the tier pays.

A read costs the processor time of this process and of the servers it asks, and a share of the memory that its copy
occupies. Prices are assumptions, the same for both sides of a line, so that a ratio depends on them only as far as
memory is dear against processors.

A tier that answers the share h of its reads costs `tier + (1 - h) * below` a read instead of `below`: it pays if h is
above `tier / below`, the ratio. A ratio above 1 says that the tier cannot pay at any hit rate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import redis

from benchmarks.child import Child, child
from benchmarks.contest import Contest, Progress, Side
from benchmarks.cost_reader import PAIRS, PREDICTIONS, Spent, Task
from benchmarks.own_servers import own_servers
from benchmarks.ratio import Compare, Target
from mlserve.cache.outcome import Tier
from mlserve.embedded import Servers

USD_PER_VCPU_HOUR = 0.04
"""Assumed: about what large clouds ask on demand for a general-purpose virtual processor."""
USD_PER_GB_HOUR = 0.005
"""Assumed: about what they ask for the memory of such a machine."""
READS_PER_HOUR = 60
"""Assumed of every copy. The more often a copy is read, the less of its memory each read pays."""
_HOUR_S = 3_600
_GB = 1e9
_MILLION = 1e6
_PATIENCE_S = 10.0


def usd_per_million(*, cpu_s: float, held_bytes: float = 0.0) -> float:
    """For a million reads, each of which takes `cpu_s` of processors and has a copy of `held_bytes`."""
    processors = cpu_s / _HOUR_S * USD_PER_VCPU_HOUR
    memory = held_bytes / _GB * USD_PER_GB_HOUR / READS_PER_HOUR
    return (processors + memory) * _MILLION


class Meter:
    """Measures reads of one process and its two servers, which nobody else uses."""

    def __init__(self, reader: Child, servers: Servers, cache: "redis.Redis") -> None:
        self._reader = reader
        self._servers = servers
        self._cache = cache
        self.held_bytes: dict[tuple[str, Tier], float] = {}
        """Of what one read needs, by what it is and the tier that holds it. The source is there in any case."""
        self._fill("features", PAIRS)
        self._fill("prediction", PREDICTIONS)

    def _fill(self, what: str, reads: int) -> None:
        before = self._l2_bytes()
        self.held_bytes[what, Tier.L1] = self._reader.ask(what)["l1_bytes"] / reads
        self.held_bytes[what, Tier.L2] = (self._l2_bytes() - before) / reads

    def spend(self, what: str, tier: Tier, seconds: float) -> tuple[Spent, float]:
        """What the process spent, and what its servers did (s of processor)."""
        before = self._servers_cpu_s()
        spent = msgspec.convert(self._reader.ask(Task(what, tier, seconds)), Spent)
        after = self._servers_cpu_s()
        # A server process that came meanwhile began at 0, one that went has taken its time with it.
        return spent, sum(used - before.get(process, 0.0) for process, used in after.items())

    def price(self, what: str, tier: Tier) -> Side:
        def measure(seconds: float) -> float:
            spent, servers_s = self.spend(what, tier, seconds)
            cpu_s = (spent.cpu_s + servers_s) / spent.reads
            return usd_per_million(cpu_s=cpu_s, held_bytes=self.held_bytes.get((what, tier), 0.0))

        return measure

    def _servers_cpu_s(self) -> dict[int, float]:
        """Of each process; Valkey's own figure is finer than the system's ticks."""
        cpu = self._cache.info("cpu")
        used = {0: float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])}
        for pid in self._servers.pids("postgres"):
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[pid] = times.user + times.system
        return used

    def _l2_bytes(self) -> int:
        """By Valkey's own account of each key: so few of them would drown in what the server takes once."""
        return sum(self._cache.memory_usage(key) or 0 for key in self._cache.scan_iter())


def contests(meter: Meter) -> list[Contest]:
    """Each tier against what answers if it does not."""

    def line(
        name: str, what: str, tier: Tier, below: Tier, *, ours_is: str, other_is: str, compare: Compare
    ) -> Contest:
        return Contest(
            name=name,
            ours_is=ours_is,
            other_is=other_is,
            unit="USD/million reads",
            compare=compare,
            target=Target(1, at_most=True),
            ours=meter.price(what, tier),
            other=meter.price(what, below),
        )

    six = "the six groups of a customer and a merchant"
    return [
        line(
            "cost-l1",
            "features",
            Tier.L1,
            Tier.L2,
            ours_is=f"a read of {six} from L1; the ratio is the hit rate from which L1 pays",
            other_is="the same from L2: this process and Valkey",
            compare=Compare.OURS_OVER_OTHER,
        ),
        line(
            "cost-l2",
            "features",
            Tier.L2,
            Tier.L3,
            ours_is=f"a read of {six} from L2; the ratio is the hit rate from which L2 pays",
            other_is="the same from L3: this process and PostgreSQL",
            compare=Compare.OURS_OVER_OTHER,
        ),
        line(
            "cost-prediction-l1",
            "prediction",
            Tier.L1,
            Tier.COMPUTED,
            ours_is="a prediction from L1, its input digested; the ratio is the hit rate from which that pays",
            other_is="the prediction computed: boosted trees, one row",
            compare=Compare.OURS_OVER_OTHER,
        ),
        line(
            "cost-prediction-l2",
            "prediction",
            Tier.L2,
            Tier.COMPUTED,
            ours_is="a prediction from L2; at a ratio of at most 1 to cache it there pays at no hit rate",
            other_is="the prediction computed: boosted trees, one row",
            compare=Compare.OTHER_OVER_OURS,
        ),
    ]


@contextmanager
def open_meter(progress: Progress) -> Iterator[Meter]:
    """Some fifteen seconds: servers, a database, a model."""
    progress("start servers, train a model", 0.0)
    with own_servers(("postgres", "cache")) as (servers, environment):
        log = Path(environment["MLSERVE_VAR_DIR"]) / "cost.log"
        with child("benchmarks.migrated", environment=environment, log=log) as migrations:
            migrations.hear()
        cache = redis.Redis.from_url(environment["REDIS_CACHE_URL"], socket_timeout=_PATIENCE_S)
        with child("benchmarks.cost_reader", environment=environment, log=log) as reader:
            reader.hear()
            yield Meter(reader, servers, cache)


@contextmanager
def open_cost(progress: Progress) -> Iterator[list[Contest]]:
    with open_meter(progress) as meter:
        yield contests(meter)
