"""L2: Redis, shared by all processes. One hash per entity, one field per feature group, one round trip per look-up.

The wire (`wire.py`) has translated every error of the network into a reason already; here are the commands, the scripts
and what their replies mean. Nothing is raised.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from secrets import token_bytes
from typing import Any

import msgspec
from redis.exceptions import NoScriptError, ResponseError

from mlserve.cache import codec
from mlserve.cache.chain import Head
from mlserve.cache.clock import Clock, SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import EntityNames, Key, names_of
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.seal import NO_SEAL, Seal
from mlserve.cache.stats import Stats
from mlserve.cache.tiers.base import Entity, Found, LeaseAnswer, LeaseToken
from mlserve.cache.tiers.wire import Command, Wire, pack
from mlserve.cache.watermark import MOST_AHEAD_S, Watermark, parse

LEASE_MS = 3_000
"""After so long the lease of a caller that died is void. Longer than any load may take (`features.source`)."""
NO_EPOCH = 0
"""Of what is filled while a partition has no watermark; epochs begin at 1, so nobody will ever vouch for it."""
REPLICAS = 3
"""Copies of a hot entity in a Cluster, its own partition included."""
_SUSPECTS = 32


def _own_partition(_kind: str, _entity_id: str) -> int:
    return 0


class L2Tier:
    """Thread-safe. `partitions` is 1 but for a Cluster; `replica_of` names the copy that this process reads.

    `heads`: how far this process has heard of the batches of each partition (`chain.py`), if it follows them.
    """

    tier = Tier.L2

    def __init__(
        self,
        wire: Wire,
        stats: Stats,
        *,
        clock: Clock | None = None,
        partitions: int = 1,
        replica_of: Callable[[str, str], int] = _own_partition,
        heads: Callable[[], Sequence[Head]] = tuple,
        seal: Seal = NO_SEAL,
    ) -> None:
        self.wire = wire
        self.oversized_removed = 0
        self._stats = stats
        self._clock = clock or SystemClock()
        self._partitions = partitions
        self._replica_of = replica_of if partitions > 1 else _own_partition
        self._heads = heads
        self._seal = seal
        self._reached: dict[bytes, tuple[int, float]] = {}
        """Epoch and safe time of each watermark as they were last read."""
        self._suspects: deque[Command] = deque(maxlen=_SUSPECTS)

    # --- reading ---

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy], *, timeout_s: float | None = None) -> Found:
        entities = _by_entity(keys)
        names = {entity: self._names(entity) for entity in entities}
        commands = [
            _read_command(names[entity].record, tuple([key.group for key in of_entity]))
            for entity, of_entity in entities.items()
        ]
        partitions: list[bytes] = []
        if any(policies[key.group].proven for key in keys):
            partitions = list(dict.fromkeys([each.watermark for each in names.values()]))
        heads, reached = self._heads(), self._reached.copy()
        # Watermarks first: what is read after them is at least as new as they say. The other way round a change could
        # slip in between, and the watermark would vouch for what it has just withdrawn.
        replies = self.wire.ask([_get_command(name) for name in partitions] + commands, timeout_s=timeout_s)
        watermarks = {
            name: self._watermark(name, reply, reached) for name, reply in zip(partitions, replies, strict=False)
        }
        found: Found = {}
        for command, (entity, of_entity), reply in zip(
            commands, entities.items(), replies[len(partitions) :], strict=True
        ):
            watermark = self._if_it_covers(watermarks.get(names[entity].watermark), entity, heads)
            too_large = self._read_reply(found, reply, of_entity, names[entity].digest, policies, watermark)
            if too_large or reply is MissReason.TIMEOUT:
                self._suspects.append(command)
        return found

    peek_many = get_many

    def _watermark(self, name: bytes, reply: Any, reached: Mapping[bytes, tuple[int, float]]) -> Watermark | None:
        """Believed no further than a little ahead of this host's clock: one that is ahead vouches for the future.

        `reached`: a copy of what had been read before this was asked for.
        """
        if not isinstance(reply, bytes):
            return None
        watermark = parse(reply, name, self._seal)
        if watermark is None:
            if self._seal.keyed:
                self._stats.event("envelope_mismatch")
            return None
        self._note_progress(name, (watermark.epoch, watermark.safe_time), reached)
        latest = self._clock.now() + MOST_AHEAD_S
        if watermark.safe_time > latest:
            self._stats.event("clock_ahead")
            return msgspec.structs.replace(watermark, safe_time=latest)
        return watermark

    def _note_progress(
        self, name: bytes, position: tuple[int, float], reached: Mapping[bytes, tuple[int, float]]
    ) -> None:
        """Counts a watermark that is behind the one that was known before it was asked for.

        One that is behind what other threads have read since may have overtaken nothing but its own reader.
        """
        before = reached.get(name)
        if position == before:
            return
        if before is not None and position < before:
            self._stats.event("watermark_went_back")
            self._reached[name] = position  # told once
        else:
            self._reached[name] = max(position, self._reached.get(name, position))

    def _if_it_covers(self, watermark: Watermark | None, entity: Entity, heads: Sequence[Head]) -> Watermark | None:
        """None where L2 promises less than what this process had heard of before it asked.

        Then L2 has lost the end of its history, and may hold copies again that were withdrawn. `heads`: as they were
        before the question.
        """
        if watermark is None or not heads:
            return watermark
        here, own = self._names(entity).partition, names_of(*entity, self._partitions).partition
        promised = heads[here].promised
        if promised is not None and not watermark.covers(promised):
            self._stats.event("history_lost")
            return None
        elsewhere = heads[own].promised if own != here else None
        # A copy of a hot entity: epochs are each partition's own, snapshots are those of the one source.
        if elsewhere is not None and not watermark.covers(msgspec.structs.replace(elsewhere, epoch=0)):
            return None
        return watermark

    def _read_reply(
        self,
        found: Found,
        reply: Any,
        keys: Sequence[Key],
        digest: bytes,
        policies: Mapping[str, Policy],
        watermark: Watermark | None,
    ) -> bool:
        """Adds to `found`. Whether there was a record too large to be ours."""
        too_large = False
        if isinstance(reply, MissReason):
            for key in keys:
                found[key] = reply
        elif not isinstance(reply, list) or len(reply) != len(keys):
            # An error (WRONGTYPE: somebody else's value under our name) is a torn record, no outage.
            for key in keys:
                found[key] = MissReason.DECODE
        else:
            for key, record in zip(keys, reply, strict=True):
                held = found[key] = _judge(record, key, digest, policies[key.group], watermark, self._seal)
                if held is MissReason.DECODE and self._seal.keyed and isinstance(record, bytes):
                    self._note_foreign(record, key, digest)
                if held is MissReason.DECODE and isinstance(record, bytes) and len(record) > codec.MAX_RECORD_BYTES:
                    too_large = True
        return too_large

    def _note_foreign(self, record: bytes, key: Key, digest: bytes) -> None:
        if not codec.is_sealed(record, key, digest, self._seal):
            self._stats.event("envelope_mismatch")

    # --- the right to load ---

    def lease_many(
        self,
        keys: Sequence[Key],
        seen: Mapping[Key, Entry | MissReason],
        policies: Mapping[str, Policy],
        *,
        timeout_s: float | None = None,
    ) -> LeaseAnswer:
        entities = _by_entity(keys)
        names = {entity: self._names(entity) for entity in entities}
        tokens = {
            entity: LeaseToken(names[entity].record, names[entity].lease, token_bytes(12).hex().encode())
            for entity in entities
        }
        heads, reached = self._heads(), self._reached.copy()
        replies = self._run(
            "lease.lua",
            [
                (
                    (names[entity].record, names[entity].lease, names[entity].watermark),
                    (tokens[entity].token, b"%d" % LEASE_MS, *_what_was_seen(of_entity, seen)),
                )
                for entity, of_entity in entities.items()
            ],
            timeout_s=timeout_s,
        )
        answer = LeaseAnswer({}, set(), {}, set())
        for (entity, of_entity), reply in zip(entities.items(), replies, strict=True):
            match reply:
                case [1, said]:
                    watermark = self._watermark(names[entity].watermark, said, reached)
                    epoch = watermark.epoch if watermark is not None else NO_EPOCH
                    void = watermark is not None and any(
                        _is_void(seen.get(key), policies[key.group]) for key in of_entity
                    )
                    answer.granted[entity] = msgspec.structs.replace(tokens[entity], epoch=epoch, void=void)
                case [0]:
                    answer.elsewhere.add(entity)
                case [2, said, *records] if len(records) == len(of_entity):
                    watermark = self._watermark(names[entity].watermark, said, reached)
                    watermark, digest = self._if_it_covers(watermark, entity, heads), names[entity].digest
                    self._read_reply(answer.changed, records, of_entity, digest, policies, watermark)
                case _:
                    answer.unavailable.add(entity)
        return answer

    def lease_for_write(self, entities: Iterable[Entity], *, timeout_s: float) -> dict[Entity, LeaseToken]:
        """For a writer that holds the source's rows and is about to commit: its leases take those of readers.

        Whoever had one may have read the source before this write. Entities that L2 does not answer for are left out.
        """
        wanted = [(entity, self._names(entity), token_bytes(12).hex().encode()) for entity in entities]
        commands: list[Command] = []
        for _, names, token in wanted:
            commands.append(Command(names.record, pack(b"SET", names.lease, token, b"PX", b"%d" % LEASE_MS)))
            commands.append(_get_command(names.watermark))
        reached = self._reached.copy()
        replies = self.wire.ask(commands, timeout_s=timeout_s)
        leases: dict[Entity, LeaseToken] = {}
        for place, (entity, names, token) in enumerate(wanted):
            taken, said = replies[2 * place], replies[2 * place + 1]
            watermark = self._watermark(names.watermark, said, reached)
            if taken in (b"OK", True):
                epoch = watermark.epoch if watermark is not None else NO_EPOCH
                leases[entity] = LeaseToken(names.record, names.lease, token, epoch)
        return leases

    def release(self, leases: Mapping[Entity, LeaseToken]) -> None:
        if leases:
            self._run("release.lua", [((lease.lease,), (lease.token,)) for lease in leases.values()])

    # --- writing ---

    def fill_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], leases: Mapping[Entity, LeaseToken]
    ) -> bool:
        calls, counts = [], []
        for entity, of_entity in _by_entity(entries).items():
            lease = leases.get(entity)
            if lease is None:
                self._stats.fill_refused(Tier.L2, "no_lease", len(of_entity))
                continue
            records = self._records(of_entity, entries, policies, self._names(entity).digest, lease.epoch)
            calls.append(((lease.record, lease.lease), (lease.token, b"2" if lease.void else b"0", *records)))
            counts.append(len(of_entity))
        return self._put(calls, counts)

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        """Without a lease: for a writer after its commit, and for what cannot become wrong (predictions)."""
        calls, counts = [], []
        for entity, of_entity in _by_entity(entries).items():
            for replica, names in enumerate(self._all_names(entity)):
                records = self._records(of_entity, entries, policies, names.digest, NO_EPOCH)
                only_if_held = b"1" if replica else b"0"
                calls.append(((names.record, names.lease), (b"", only_if_held, *records)))
                counts.append(len(of_entity) if not replica else 0)
        return self._put(calls, counts)

    def drop_many(self, keys: Sequence[Key]) -> bool:
        """Not shed by a breaker: an invalidation that cannot be delivered must be known to be pending."""
        calls = [
            ((names.record, names.lease), tuple(key.group.encode() for key in of_entity))
            for entity, of_entity in _by_entity(keys).items()
            for names in self._all_names(entity)
        ]
        replies = self._run("drop.lua", calls, shed=False)
        return not any(isinstance(reply, MissReason | ResponseError) for reply in replies)

    def _put(self, calls: Sequence[tuple[Sequence[bytes], Sequence[bytes]]], counts: Sequence[int]) -> bool:
        arrived = True
        for reply, count in zip(self._run("fill.lua", calls), counts, strict=True):
            if isinstance(reply, int) and reply >= 0:
                refused, why = reply, "newer"
            elif reply == -1:
                refused, why = count, "lease"
            else:
                arrived = False
                refused, why = count, str(reply) if isinstance(reply, MissReason) else "error"
            if refused:
                self._stats.fill_refused(Tier.L2, why, refused)
        return arrived

    def _records(
        self,
        keys: Sequence[Key],
        entries: Mapping[Key, Entry],
        policies: Mapping[str, Policy],
        digest: bytes,
        epoch: int,
    ) -> list[bytes]:
        records: list[bytes] = []
        for key in keys:
            policy, entry = policies[key.group], entries[key]
            keep_ms = b"%d" % int(policy.keep_for_s(entry) * 1000)
            record = codec.encode(key, digest, policy.schema, entry, epoch=epoch, seal=self._seal)
            records += (key.group.encode(), record, keep_ms)
        return records

    # --- upkeep, off the request path ---

    def probe(self) -> None:
        """Asks nodes that were away whether they are back, and removes values that are too large to be ours."""
        self.wire.probe()
        for _ in range(len(self._suspects)):
            suspect = self._suspects.popleft()
            lengths = self.wire.ask([_lengths_command(suspect.name, field) for field in _fields_of(suspect)])
            if any(isinstance(length, MissReason) for length in lengths):
                # The value has opened the breaker, maybe: it is looked at when the node is asked again.
                self._suspects.append(suspect)
            elif any(isinstance(length, int) and length > codec.MAX_RECORD_BYTES for length in lengths):
                self.wire.ask([Command(suspect.name, pack(b"UNLINK", suspect.name))], shed=False)
                self.oversized_removed += 1

    # --- names and scripts ---

    def _names(self, entity: Entity) -> EntityNames:
        return names_of(*entity, self._partitions, self._replica_of(*entity))

    def _all_names(self, entity: Entity) -> Iterable[EntityNames]:
        """Its own first. A copy that was made while the entity was hot must go and change with it afterwards too."""
        replicas = REPLICAS if self._partitions > 1 else 1
        return [names_of(*entity, self._partitions, replica) for replica in range(replicas)]

    def _run(
        self,
        script: str,
        calls: Sequence[tuple[Sequence[bytes], Sequence[bytes]]],
        *,
        timeout_s: float | None = None,
        shed: bool = True,
    ) -> list[Any]:
        """A reply for each call, a pair of keys and arguments."""
        if not calls:
            return []
        commands = [_script_command(b"EVALSHA", _digest_of(script), keys, arguments) for keys, arguments in calls]
        replies = self.wire.ask(commands, timeout_s=timeout_s, shed=shed)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # a server that is new or was restarted: the text, once, teaches it
            commands = [_script_command(b"EVAL", _text_of(script), *calls[place]) for place in unknown]
            again = self.wire.ask(commands, timeout_s=timeout_s, shed=shed)
            for place, reply in zip(unknown, again, strict=True):
                replies[place] = reply
        return replies


@cache
def _text_of(script: str) -> bytes:
    return files("mlserve.cache").joinpath("lua", script).read_bytes()


@cache
def _digest_of(script: str) -> bytes:
    """As Redis names scripts; no secret depends on it."""
    return sha1(_text_of(script), usedforsecurity=False).hexdigest().encode()


def _script_command(verb: bytes, script: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Command:
    return Command(keys[0], pack(verb, script, b"%d" % len(keys), *keys, *arguments))


@lru_cache(65_536)
def _read_command(record: bytes, groups: tuple[str, ...]) -> Command:
    return Command(record, pack(b"HMGET", record, *[group.encode() for group in groups]))


@lru_cache(1024)
def _get_command(name: bytes) -> Command:
    return Command(name, pack(b"GET", name), of_slot=True)


def _lengths_command(record: bytes, field: bytes) -> Command:
    return Command(record, pack(b"HSTRLEN", record, field))


def _fields_of(read: Command) -> list[bytes]:
    """The fields that a command of `_read_command` asks for: its parts from the third on."""
    return read.packed.split(b"\r\n")[6:-1:2]


def _by_entity(keys: Iterable[Key]) -> dict[Entity, list[Key]]:
    grouped: dict[Entity, list[Key]] = {}
    for key in keys:
        entity = (key.kind, key.id)
        of_entity = grouped.get(entity)
        if of_entity is None:
            grouped[entity] = [key]
        else:
            of_entity.append(key)
    return grouped


def _judge(
    record: Any, key: Key, digest: bytes, policy: Policy, watermark: Watermark | None, seal: Seal
) -> Entry | MissReason:
    if record is None:
        return MissReason.COLD
    if not isinstance(record, bytes):
        return MissReason.DECODE
    held = codec.decode(record, key, digest, policy.schema, watermark, seal)
    return MissReason.DECODE if isinstance(held, Entry) and not policy.fits(held) else held


def _is_void(seen: Entry | MissReason | None, policy: Policy) -> bool:
    """Whether what was seen may be of another epoch: nobody vouched for it, or a tombstone, which has none.

    If it is of this one nothing is lost. Whoever fills has the lease, so it has read the source after the last change
    that was told here, and reads no smaller version.
    """
    if not policy.proven:
        return False
    return seen is MissReason.INVALIDATED or (isinstance(seen, Entry) and not seen.vouched_at)


_SEEN_AS = {
    MissReason.COLD: b"",
    MissReason.INVALIDATED: b"T",
    MissReason.DECODE: b"!",
    MissReason.TIMEOUT: b"",  # nothing was seen at all: whatever lies there is news
}


def _what_was_seen(keys: Sequence[Key], seen: Mapping[Key, Entry | MissReason]) -> list[bytes]:
    """As `lease.lua` wants it: pairs of a field and what the caller found there."""
    pairs: list[bytes] = []
    for key in keys:
        found = seen.get(key, MissReason.COLD)
        if isinstance(found, Entry):
            what = codec.identity(found)
        else:
            what = _SEEN_AS.get(found, b"*")
        pairs += (key.group.encode(), what)
    return pairs
