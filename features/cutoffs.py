"""Up to where the ledger counts in what a build makes. One rule: builds follow it, and so does training.

A build that took in whatever there was at its moment would hold the same day's transactions, of which the builds that
training looks at know nothing, and would hold other ones each time it ran: a model would be asked about values that
it could not have learnt from. So a group is built as of its last cutoff, whenever the build runs. A build that is
repeated before the next cutoff changes nothing but for transactions that arrived late.
"""

from typing import Final, TypeVar

from features.compute import DAY_US, Integers
from features.definitions import (
    CUSTOMER_EMBEDDING,
    CUSTOMER_PROFILE,
    MERCHANT_EMBEDDING,
    MERCHANT_PROFILE,
    MERCHANT_RISK,
)

_Moment = TypeVar("_Moment", int, Integers)
_HALF_HOUR_US = 30 * 60 * 1_000_000
_EVERY_US: Final = {
    CUSTOMER_PROFILE.name: DAY_US,
    CUSTOMER_EMBEDDING.name: DAY_US,
    MERCHANT_PROFILE.name: DAY_US,
    MERCHANT_RISK.name: _HALF_HOUR_US,
    MERCHANT_EMBEDDING.name: DAY_US,
}
GROUPS_WITH_CUTOFF = frozenset(_EVERY_US)
"""The others are derived anew with every transaction."""


def cutoff_us(group: str, at_us: _Moment) -> _Moment:
    """The group's last cutoff at this moment or before (microseconds since 1970): a midnight or half hour, UTC.

    At a moment, profiles and embeddings are those of the transactions before their cutoff; the windows of merchant risk
    end at theirs. Raises KeyError for a group that is not built by cutoffs.
    """
    return at_us - at_us % _EVERY_US[group]
