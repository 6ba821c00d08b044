"""What a tier keeps: one immutable object per key, shared by reference between tiers and requests of a process."""

import msgspec

_OBJECT_BYTES = 130
_VALUE_BYTES = 32  # a boxed float and the pointer to it


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A copy of what the source said.

    `version` orders states of one key (larger is newer). `as_of` is when the source computed the values,
    `written_at` when this copy was read from the source; both in seconds since 1970 and never reset by copying from
    tier to tier. `values` is None for a negative entry: the source knows nothing of this key. `cost_s` is how long the
    source took to answer, measured; 0 if nobody measured it. `vouched_at` (s since 1970): every write that was
    acknowledged before it is in this copy, by a watermark or because the source was read then; 0 if nobody says so.
    `outdated`: the source says itself that the values do not follow from what it knows, and will be derived anew. They
    serve whoever asked, flagged, and no tier keeps them.
    """

    version: int
    as_of: float
    written_at: float
    values: tuple[float, ...] | None
    cost_s: float = 0.0
    vouched_at: float = 0.0
    outdated: bool = False

    @property
    def size_bytes(self) -> int:
        """Estimated size in this process."""
        return _OBJECT_BYTES + _VALUE_BYTES * len(self.values or ())
