"""What files write where they have nothing."""

from typing import Final

NULL_WORDS: Final = frozenset(("nan", "none", "null", "-", "\\n", "n/a", "na", "#n/a", "<na>", "nat"))
"""In small letters; an empty cell is nothing in any case. From pandas, R, MySQL's and PostgreSQL's exports, Excel."""
