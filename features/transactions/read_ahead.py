"""While the database loads one batch, the next is made ready: the two work on different processors."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")


class _End:
    """Nothing more comes."""


_END: Final = _End()


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order, the next one being made in another thread. Errors surface in their place."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(next, iterator, _END)
        while not isinstance(item := coming.result(), _End):
            coming = pool.submit(next, iterator, _END)
            yield item
