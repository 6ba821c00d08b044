"""What operators are told where freshness is to be proven and nobody can prove it."""

from collections.abc import Collection

from django.conf import settings

from mlserve.platform.proof import read_proof, why_unproven


def unproven(groups: Collection[str], *, now: float) -> str:
    """A sentence on these groups, whose policies ask for proof; empty if L2 can give it, or there are none."""
    if not groups:
        return ""
    why = why_unproven(read_proof(), now=now, bound_s=settings.FRESHNESS_BOUND_S)
    if not why:
        return ""
    names = ", ".join(sorted(groups))
    return (
        f"Freshness of {names} cannot be proven, so copies of it in the cache do not serve and every read goes to "
        f"Postgres: {why}. Keep manage.py relay running."
    )
