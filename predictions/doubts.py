"""What a score must say of the model and the policies behind it, beside what was wrong with its features."""

from typing import Final

from mlserve.cache.outcome import Degradation
from mlserve.cache.policy import PolicyBook
from predictions.registry.active import standing_of_model

_NONE: Final = frozenset[Degradation]()


def doubts_about(book: PolicyBook) -> frozenset[Degradation]:
    """Empty while PostgreSQL has confirmed that the model and the policies of this moment are in force."""
    of_model = standing_of_model().degradation
    if of_model is None and book.is_confirmed:
        return _NONE
    of_policies = None if book.is_confirmed else Degradation.POLICIES_UNCONFIRMED
    return frozenset(doubt for doubt in (of_model, of_policies) if doubt is not None)
