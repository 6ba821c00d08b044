"""What a model does without a feature group that neither the cache nor the source could supply."""

from enum import StrEnum


class OnMissingSource(StrEnum):
    """A model version's rule; it stands above what the policies of the groups say."""

    FOLLOW = "follow"
    """Each group's policy decides (`on_missing`)."""
    DEFAULT = "default"
    """Score with defaults, flagged, whatever the policies say."""
    FAIL = "fail"
    """Refuse the score, whichever group it is."""


def refuses(rule: OnMissingSource, *, policy_fails: bool) -> bool:
    """Whether to answer 503 rather than to assume defaults for a group whose policy says `policy_fails`."""
    return policy_fails if rule is OnMissingSource.FOLLOW else rule is OnMissingSource.FAIL
