"""The first tier: what this request has already read, so that two models in it never see two different values."""

from collections.abc import Mapping, Sequence

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import Found


class RequestTier:
    """One per request, used by one thread. What it holds is served however old: it is this request's snapshot."""

    tier = Tier.REQUEST

    def __init__(self) -> None:
        self._held: dict[Key, Entry] = {}

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        held = self._held
        return {key: held.get(key, MissReason.COLD) for key in keys}

    peek_many = get_many

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        for key, entry in entries.items():
            self._held.setdefault(key, entry)
        return True

    def drop_many(self, keys: Sequence[Key]) -> bool:
        for key in keys:
            self._held.pop(key, None)
        return True
