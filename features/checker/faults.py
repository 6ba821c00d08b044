"""The nemesis: breaks processes, links and servers of a stand one after the other, and mends them.

A fault counts only if it was seen to have happened: a failover when the Sentinels name another primary, a frozen
process when the kernel says so, a restart when the server says when it was started.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import redis

from features.checker.children import is_stopped
from features.checker.history import HEADER_BYTES
from features.checker.schedule import Planned
from features.checker.stand import Stand
from mlserve.servers.tcp_proxy import Link

_FAILOVER_S = 8.0
_SEEN_S = 2.0
_RECORDS = "ml*:v:*"
_EVICTED_SHARE = 3
_EVICTED_EVERY_S = 0.1
_CLOCK_OFF_MS = (20.0, 50.0)


class Nemesis:
    """`planned` and `fired`: how often, by fault. `failovers`: changes of the primary, whatever brought them about."""

    def __init__(self, stand: Stand) -> None:
        self.planned: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.failovers = 0
        self._stand = stand
        self._primary: int | None = None

    def strike(self, planned: Planned) -> bool:
        """One fault, mended again. Whether it was seen to happen. Raises NotMended if what was broken stays so."""
        self.planned[planned.fault] += 1
        strike: Callable[[Planned], bool] = getattr(self, f"_{planned.fault}")
        try:
            fired = strike(planned)
        except redis.RedisError:
            fired = False
        self.mend()
        self.fired[planned.fault] += fired
        return fired

    def mend(self) -> None:
        stand = self._stand
        stand.cache.mend()
        place = stand.cache.primary_place()
        self.failovers += self._primary is not None and place != self._primary
        self._primary = place

    # --- processes ---

    def _reader_kill(self, planned: Planned) -> bool:
        place = self._some_reader(planned)
        killed = self._kill(self._stand.readers[place])
        self._stand.start_reader(place)
        return killed

    def _reader_stop(self, planned: Planned) -> bool:
        return self._freeze([self._stand.readers[self._some_reader(planned)]], 0.2 + 2.3 * planned.share)

    def _relay_kill(self, planned: Planned) -> bool:
        places = sorted(self._stand.relays)[: 1 + planned.variant]
        killed = sum(self._kill(self._stand.relays[place]) for place in places) == len(places)
        self._stand.pause(2.0 * planned.share)
        for place in places:
            self._stand.start_relay(place)
        return killed

    def _relay_stop(self, planned: Planned) -> bool:
        pids = list(self._stand.relays.values())[: 1 + planned.variant]
        return self._freeze(pids, 0.2 + 2.3 * planned.share)

    def _clock(self, planned: Planned) -> bool:
        """The process serves with the wrong clock until it is replaced in its turn."""
        place = self._some_reader(planned)
        self._kill(self._stand.readers[place])
        nearest, farthest = _CLOCK_OFF_MS
        offset_ms = nearest + (farthest - nearest) * planned.share
        before = set(self._stand.run.logs.glob("reader-*.reads"))
        self._stand.start_reader(place, clock_offset_ms=offset_ms if planned.variant else -offset_ms)

        def reads() -> bool:
            made = set(self._stand.run.logs.glob("reader-*.reads")) - before
            return any(path.stat().st_size > HEADER_BYTES for path in made)

        return self._stand.wait(reads, within_s=_SEEN_S)

    def _some_reader(self, planned: Planned) -> int:
        places = sorted(self._stand.readers)
        return places[int(planned.share * 1000) % len(places)]

    def _kill(self, pid: int) -> bool:
        sent = self._stand.signal(pid, signal.SIGKILL)
        return sent and self._stand.wait(lambda: self._stand.ended.get(pid) == -signal.SIGKILL, within_s=_SEEN_S)

    def _freeze(self, pids: list[int], seconds: float) -> bool:
        for pid in pids:
            self._stand.signal(pid, signal.SIGSTOP)
        frozen = self._stand.wait(lambda: all(is_stopped(pid) for pid in pids), within_s=_SEEN_S)
        try:
            self._stand.pause(seconds)
        finally:
            for pid in pids:
                self._stand.signal(pid, signal.SIGCONT)
        return frozen

    # --- the cache ---

    def _primary_kill(self, planned: Planned) -> bool:
        cache, before = self._stand.cache, self._stand.cache.primary_place()
        cache.servers[before].process.kill()
        return cache.wait_for_another_primary(before, within_s=_FAILOVER_S)

    def _primary_stop(self, planned: Planned) -> bool:
        cache, before = self._stand.cache, self._stand.cache.primary_place()
        node = cache.servers[before]
        node.process.freeze()
        try:
            promoted = cache.wait_for_another_primary(before, within_s=_FAILOVER_S)
        finally:
            node.process.thaw()
        self._stand.pause(planned.share)  # with two primaries
        return promoted

    def _lossy_failover(self, planned: Planned) -> bool:
        """The primary is replaced while it works."""
        return self._lose_history(planned, relays=())

    def _lossy_kill(self, planned: Planned) -> bool:
        """It dies while the relays are frozen, who then go on from what they knew."""
        return self._lose_history(planned, relays=list(self._stand.relays.values()))

    def _lose_history(self, planned: Planned, *, relays: Sequence[int]) -> bool:
        cache, before = self._stand.cache, self._stand.cache.primary_place()
        primary, replica = cache.servers[before], cache.servers[1 - before]
        cut = cache.proxies[before].cut_connections
        cache.proxies[before].set_link(Link.NO_REPLICATION)
        self._stand.pause(0.3 + 0.9 * planned.share)
        behind = _offset(primary.info("replication")) > _offset(replica.info("replication"))
        try:
            for pid in relays:
                self._stand.signal(pid, signal.SIGSTOP)
            if relays:
                primary.process.kill()
            else:
                cache.fail_over()
            promoted = cache.wait_for_another_primary(before, within_s=_FAILOVER_S)
        finally:
            for pid in relays:
                self._stand.signal(pid, signal.SIGCONT)
        return promoted and behind and cache.proxies[before].cut_connections > cut

    def _failover(self, planned: Planned) -> bool:
        cache, before = self._stand.cache, self._stand.cache.primary_place()
        cache.fail_over()
        return cache.wait_for_another_primary(before, within_s=_FAILOVER_S)

    def _link_cut(self, planned: Planned) -> bool:
        """For longer than half of the time the Sentinels hold the primary for dead."""
        cache = self._stand.cache
        proxy = cache.proxies[cache.primary_place()]
        before = proxy.cut_connections
        proxy.set_link(Link.DEAF if planned.variant else Link.CUT)
        self._stand.pause(0.2 + 1.8 * planned.share)
        proxy.mend()
        return proxy.cut_connections > before

    def _slow_link(self, planned: Planned) -> bool:
        cache = self._stand.cache
        proxy = cache.proxies[cache.primary_place()]
        before = proxy.delayed_chunks
        proxy.delay_s = 0.003 + 0.027 * planned.share
        self._stand.pause(0.5 + 1.5 * planned.share)
        proxy.mend()
        return proxy.delayed_chunks > before

    def _flushall(self, planned: Planned) -> bool:
        client = self._stand.cache.primary().client
        held = client.dbsize()
        return bool(client.flushall()) and held > 0

    def _flushall_unheard(self, planned: Planned) -> bool:
        """Shorter than the silence after which a process would not believe its memory anyway."""
        relays = list(self._stand.relays.values())
        for pid in relays:
            self._stand.signal(pid, signal.SIGSTOP)
        frozen = self._stand.wait(lambda: all(is_stopped(pid) for pid in relays), within_s=_SEEN_S)
        try:
            self._stand.pause(0.2 + 0.25 * planned.share)
            flushed = self._flushall(planned)
        finally:
            for pid in relays:
                self._stand.signal(pid, signal.SIGCONT)
        return frozen and flushed

    def _old_file(self, planned: Planned) -> bool:
        """Within no time: nobody sees it away, and the relays go on from a history that is gone."""
        client = self._stand.cache.primary().raw_client
        kept = _everything(client)
        self._stand.pause(0.2 + 0.5 * planned.share)
        pipeline = client.pipeline(transaction=True)
        pipeline.flushdb()
        for name, (value, life_ms) in kept.items():
            pipeline.restore(name, life_ms, value)
        pipeline.execute()
        return bool(kept)

    def _evict(self, planned: Planned) -> bool:
        """As under pressure of memory: whatever is there goes again and again, tombstones too."""
        client = self._stand.cache.primary().client
        evicted = 0
        for round_number in range(5 + round(25 * planned.share)):
            records = sorted(client.scan_iter(_RECORDS, count=1000))
            chosen = records[round_number % _EVICTED_SHARE :: _EVICTED_SHARE]
            evicted += client.unlink(*chosen) if chosen else 0
            self._stand.pause(_EVICTED_EVERY_S)
        return evicted > 0

    # --- the database ---

    def _long_transaction(self, planned: Planned) -> bool:
        seconds = 1.0 + 3.0 * planned.share
        pid = self._stand.hold_transaction(seconds)
        return self._stand.wait(lambda: pid in self._stand.ended, within_s=seconds + 5) and not self._stand.ended[pid]

    def _postgres_restart(self, planned: Planned) -> bool:
        postgres = self._stand.postgres
        url = postgres.running().database_url
        if url is None:
            return False
        started = _started_at(url)
        pids = postgres.pids("postgres")
        os.kill(pids[0], signal.SIGQUIT)  # the postmaster's word for immediate
        self._stand.wait(lambda: not set(pids) & set(postgres.pids("postgres")), within_s=10)
        self._stand.pause(planned.share)
        postgres.up(("postgres",))
        return _started_at(url) != started


def _everything(client: Any) -> dict[bytes, tuple[bytes, int]]:
    """All that the server has at one moment: value and remaining life (ms, 0: for ever) by key."""
    names = sorted(client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=True)
    for name in names:
        pipeline.dump(name).pttl(name)
    answers = pipeline.execute()
    found = zip(names, answers[::2], answers[1::2], strict=True)
    return {name: (value, max(0, life_ms)) for name, value, life_ms in found if value is not None}


def _offset(info: dict[str, object]) -> int:
    return int(str(info.get("master_repl_offset", 0)))


def _started_at(url: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT pg_postmaster_start_time()").fetchone()
