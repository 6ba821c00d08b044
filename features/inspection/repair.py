"""Takes wrong copies out of every tier, and their group out of the cache.

Copies are deleted whatever their version. "Delete if older" does nothing where old values stand under the newest
version, which is how such a mistake stays for good. No tombstone is left either: it would keep the version of what was
there, and a version that was made up would keep the true value out.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

import structlog
from django.conf import settings
from django.db.models import Q

from features.inspection.copies import TierAway
from features.inspection.verdicts import Cause
from features.models import TtlPolicy
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.l2_redis import REPLICAS
from mlserve.cache.tiers.wire import Command, Wire, pack

SWITCHES_OFF = (Cause.LOST_INVALIDATION, Cause.WRONG_BYTES)
_log = structlog.get_logger(__name__)


class Withdraws(Protocol):
    """What is needed of the bus."""

    def withdraw(self, keys: Sequence[Key]) -> bool:
        """Every process drops its copies. False if one could not be told."""
        ...


class Repair:
    def __init__(self, *, wire: Wire, bus: Withdraws, partitions: int) -> None:
        self._wire = wire
        self._bus = bus
        self._partitions = partitions

    def delete(self, keys: Collection[Key]) -> None:
        """From L2, all of its places, and then from every process. Raises TierAway if somebody could not be told."""
        commands: list[Command] = []
        for key in sorted(keys):
            for replica in range(REPLICAS if self._partitions > 1 else 1):
                names = names_of(key.kind, key.id, self._partitions, replica)
                # The lease first: whoever has one may have read what is deleted now, and must not fill.
                commands.append(Command(names.lease, pack(b"UNLINK", names.lease)))
                commands.append(Command(names.record, pack(b"HDEL", names.record, key.group.encode())))
        replies = self._wire.ask(commands, shed=False)
        if any(isinstance(reply, MissReason) for reply in replies):
            raise TierAway("wrong copies could not be deleted: L2 does not answer")
        if not self._bus.withdraw(sorted(keys)):
            raise TierAway("processes could not be told of wrong copies: L2 does not answer")


def switch_off(group: str, *, cause: Cause, now: datetime) -> bool:
    """Has Postgres alone answer for the group until an operator allows its tiers again. False if it does already.

    Every process obeys within a second; the policy's history names the change.
    """
    if not settings.INSPECTION_SWITCHES_OFF:
        return False
    policies = TtlPolicy.objects.filter(Q(use_l1=True) | Q(use_l2=True), name=group)
    if not policies.update(use_l1=False, use_l2=False, updated_at=now):
        return False
    _log.error(
        "group_switched_off",
        group=group,
        cause=str(cause),
        fix="find the reason, then allow L1 and L2 again in the group's TTL policy",
    )
    return True
