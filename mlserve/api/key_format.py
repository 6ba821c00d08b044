"""What an API key may look like. Without Django, so that a command line can be refused before anything starts."""

import re
from typing import Final

MINIMUM_LENGTH: Final = 16
MAXIMUM_LENGTH: Final = 128
_ALLOWED: Final = re.compile(r"[A-Za-z0-9._~+/=-]+").fullmatch
"""What RFC 6750 lets a bearer token be."""
KEY_RULE: Final = f"needs {MINIMUM_LENGTH} to {MAXIMUM_LENGTH} of the characters A-Z a-z 0-9 . _ ~ + / = -"


def is_possible_key(key: str) -> bool:
    """Whether a key may look like this; it need not exist."""
    return MINIMUM_LENGTH <= len(key) <= MAXIMUM_LENGTH and _ALLOWED(key) is not None
