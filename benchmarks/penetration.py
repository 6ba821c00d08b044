"""`penetration`: ids that never existed, through the cascade, with and without the filter of ids that exist.

Two lines: how many reads of Postgres a million such ids cost, and how long one of them takes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from secrets import token_hex
from time import perf_counter

from django.db import DatabaseError, InterfaceError, connection

from benchmarks.contest import US_PER_S, BenchmarkFailed, Contest, Progress
from benchmarks.ratio import Compare, Target
from features.definitions import GROUPS_OF_ENTITY
from features.source import read_source
from mlserve.cache.bloom import HEADROOM, BloomMembership, IdFilter, Membership, NullMembership
from mlserve.cache.cascade import Cascade
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from mlserve.observability.recorder import Recorder

EXISTING = 100_000
"""Ids that exist at the build of the filter; half its headroom is then used up, as late between two builds."""
_KIND = "customer"
_MILLION = 1_000_000
_BATCH = 100
"""Ids between two looks at the clock."""
_LEAST = 2_000
"""Ids of a measurement of loads: fewer could not show a share of one in a thousand."""
_NEGATIVE_TTL_S = 1.0
"""What is left behind in Redis is gone after this time."""


class _Attack:
    """Asks for ids that nobody has, each once, with all groups of its kind, as a score does."""

    def __init__(self, membership: Membership, keep_usable: Callable[[], None]) -> None:
        cache = engine()
        self._clock = SystemClock()
        self._keep_usable = keep_usable
        self._cascade = Cascade(
            l1=L1Tier(BoundedStore(100_000, 256 * 1024 * 1024)),
            l2=cache.l2,
            loading=cache.loading,
            stats=Recorder(),
            clock=self._clock,
        )
        self._membership = membership
        groups = GROUPS_OF_ENTITY[_KIND]
        self._groups = [group.name for group in groups]
        self._policies = {
            group.name: Policy(
                namespace=group.name,
                schema=group.schema,
                fresh_for_s=60.0,
                grace_s=0,
                negative_ttl_s=_NEGATIVE_TTL_S,
                fixed_values=len(group.values),
                repeated_values=len(group.repeated),
            )
            for group in groups
        }
        self._prefix, self._numbers = f"bench-{token_hex(8)}", count()
        self._asked = self._loads = 0

    def loads_per_million(self, seconds: float) -> float:
        """Of all ids since the run began, and one load more than there were: to see none does not prove that."""
        self._run(seconds, at_least=_LEAST)
        return (self._loads + 1) / self._asked * _MILLION

    def us_per_id(self, seconds: float) -> float:
        asked, elapsed_s = self._run(seconds)
        return elapsed_s / asked * US_PER_S

    def _run(self, seconds: float, at_least: int = 1) -> tuple[int, float]:
        """How many ids it asked for, and how many seconds that took."""
        asked, started = 0, perf_counter()
        while True:
            self._keep_usable()
            for _ in range(_BATCH):
                self._ask(f"{self._prefix}-{next(self._numbers)}")
            asked += _BATCH
            elapsed_s = perf_counter() - started
            if elapsed_s >= seconds and asked >= at_least:
                self._asked += asked
                return asked, elapsed_s

    def _ask(self, entity_id: str) -> None:
        reading = self._cascade.read_many(
            [Key(_KIND, entity_id, group) for group in self._groups],
            policies=self._policies,
            loader=self._load,
            request=RequestTier(),
            budget=engine().budget(),
            membership=self._membership,
        )
        if any(outcome.values is not None for outcome in reading.outcomes.values()):
            raise BenchmarkFailed(f"penetration: something is known of {entity_id}")

    def _load(self, keys: Sequence[Key]) -> Mapping[Key, Entry]:
        self._loads += 1
        return read_source(keys)


@contextmanager
def open_penetration(_progress: Progress) -> Iterator[list[Contest]]:
    """Reads a table of its own in the database that is configured, and uses the cache's own Redis."""
    clock = SystemClock()
    membership = BloomMembership(clock)
    held = IdFilter.for_count(EXISTING, token_hex(16).encode())
    held.add_all(f"C{number}" for number in range(EXISTING * (HEADROOM + 1) // 2))
    membership.install({_KIND: held})
    try:
        with _empty_table():
            filtered = _Attack(membership, lambda: membership.vouch(since=clock.monotonic()))
            unfiltered = _Attack(NullMembership(), lambda: None)
            yield [
                Contest(
                    name="penetration-loads",
                    ours_is=f"Cascade.read_many of unknown ids; filter of {EXISTING:,} with half its headroom used up",
                    other_is="the same without the filter",
                    unit="loads/million",
                    compare=Compare.OURS_OVER_OTHER,
                    target=Target(0.001, at_most=True),
                    ours=filtered.loads_per_million,
                    other=unfiltered.loads_per_million,
                ),
                Contest(
                    name="penetration-time",
                    ours_is="one unknown id, all customer groups, with the filter: a look at Redis and no more",
                    other_is="the same without it: a look at Redis, a lease, a read of Postgres, negative entries",
                    unit="us/id",
                    compare=Compare.OTHER_OVER_OURS,
                    target=Target(2),
                    ours=filtered.us_per_id,
                    other=unfiltered.us_per_id,
                ),
            ]
    except (DatabaseError, InterfaceError) as error:
        raise BenchmarkFailed(f"penetration: Postgres does not answer or refuses: {error}") from error


@contextmanager
def _empty_table() -> Iterator[None]:
    """A temporary table hides the one of the same name: nobody's data are read, and no migration is needed."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE TEMPORARY TABLE features_featurerow (
                "group" text, entity_id text, "values" float8[], version bigint, as_of timestamptz,
                deleted_at timestamptz, PRIMARY KEY ("group", entity_id)
            )
            """
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE pg_temp.features_featurerow")
