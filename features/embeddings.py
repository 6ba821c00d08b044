"""Places for customers and merchants by who pays whom: the vectors whose cosine is a transaction's affinity."""

from hashlib import blake2b

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils.extmath import randomized_svd

from features.compute import Floats, Integers
from features.definitions import EMBEDDING_SIZE

_NEGLIGIBLE = 1e-9
"""Components this small against the largest are rounding noise of a matrix of lower rank."""


_EXACT_BITS = 53
"""Integers up to 2 ** 53 are exact in a float64, in which the number is stored."""


def with_build(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Both sides of one build with its number as a further column.

    The number is a digest of all coordinates: it names the axes. So it is the same for the same result, whichever
    server computed it, and another one for another; a sequence would begin anew on a restored database.
    """
    digest = blake2b(left.tobytes(), digest_size=8)
    digest.update(right.tobytes())
    number = float(int.from_bytes(digest.digest(), "big") >> (64 - _EXACT_BITS) or 1)  # 0: of no build
    return (
        np.column_stack((left, np.full(len(left), number))),
        np.column_stack((right, np.full(len(right), number))),
    )


def embed(customers: int, merchants: int, customer: Integers, merchant: Integers) -> tuple[Floats, Floats]:
    """[customers, 16] and [merchants, 16] from one row per transaction, given as codes from 0.

    A truncated SVD of log(1 + number of payments), the singular values shared between both sides, so that the product
    of two vectors approximates the entry. The same input gives the same output on the same machine. Who never paid
    or was never paid has zeros, as do components that a small matrix does not have.
    """
    left, right = np.zeros((customers, EMBEDDING_SIZE)), np.zeros((merchants, EMBEDDING_SIZE))
    payers, row = np.unique(customer, return_inverse=True)
    payees, column = np.unique(merchant, return_inverse=True)
    size = min(EMBEDDING_SIZE, len(payers), len(payees))
    if size:
        pairs, times = np.unique(row * len(payees) + column, return_counts=True)
        paid = csr_array((np.log1p(times), np.divmod(pairs, len(payees))), shape=(len(payers), len(payees)))
        # What TruncatedSVD calls, which refuses a ledger with a single merchant.
        from_left, strength, from_right = randomized_svd(paid, size, n_iter=5, random_state=0)
        root = np.where(strength > _NEGLIGIBLE * strength[0], np.sqrt(strength), 0.0)
        left[payers, :size] = from_left * root
        right[payees, :size] = from_right.T * root
    return left, right
