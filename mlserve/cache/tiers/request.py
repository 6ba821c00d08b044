"""The first tier: what this request has already read, so that two models in it never see two different values."""

from collections.abc import Mapping, Sequence

import msgspec

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Outcome, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import Found


class RequestTier(msgspec.Struct):
    """One per request, used by one thread. What it holds is served however old: it is this request's snapshot."""

    held: dict[Key, Entry] | None = None
    """None: nothing has been read yet."""
    latest: Mapping[Key, Outcome] | None = None
    """The last reading, taken apart only if somebody asks: most requests read features once."""

    tier = Tier.REQUEST

    @property
    def is_empty(self) -> bool:
        return self.held is None and self.latest is None

    def remember(self, outcomes: Mapping[Key, Outcome]) -> None:
        """What a read returned; the caller does not change it any more. What had no value at all is not kept."""
        if self.latest is not None:
            self._unpacked()
        self.latest = outcomes

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        held = self._unpacked()
        return {key: held.get(key, MissReason.COLD) for key in keys}

    def peek_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        return self.get_many(keys, policies)

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        held = self._unpacked()
        for key, entry in entries.items():
            held.setdefault(key, entry)
        return True

    def drop_many(self, keys: Sequence[Key]) -> bool:
        held = self._unpacked()
        for key in keys:
            held.pop(key, None)
        return True

    def _unpacked(self) -> dict[Key, Entry]:
        held = self.held
        if held is None:
            held = self.held = {}
        if self.latest is not None:
            for key, outcome in self.latest.items():
                entry = outcome.entry
                # Only a read that asked for a newer version (`at_least`) finds another entry than the one held.
                if entry is not None and (key not in held or held[key].version < entry.version):
                    held[key] = entry
            self.latest = None
        return held
