"""How an answer lies in the decisions' table: JSON, deflated (RFC 1950).

PostgreSQL would compress it as well, as it does with everything of this size, more slowly and inside the
commit that all decisions of a moment share.
"""

import zlib

from mlserve.errors import MlserveError

_LEVEL = 1
"""The fastest: an answer of 3.5 kB shrinks to about a fifth."""


class AnswerUnreadable(MlserveError):
    """What lies in the table was not written by `pack`."""


def pack(answer: bytes) -> bytes:
    """For the column."""
    return zlib.compress(answer, _LEVEL)


def unpack(column: bytes | memoryview) -> bytes:
    """The JSON; older answers were stored as such. Raises AnswerUnreadable for bytes that are neither."""
    data = bytes(column)
    if data.startswith(b"{"):
        return data
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise AnswerUnreadable(f"a stored decision cannot be read: {error}") from None
