"""How large a simulation may be."""

from mlserve.arguments import whole_number

customers = whole_number(1, 5_000_000)
merchants = whole_number(2, 500_000)
MOST_DAYS = 3660
