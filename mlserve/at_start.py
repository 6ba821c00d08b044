"""What a process that serves begins at its start, before anybody asks: a registry, since each app knows its own part.

An app registers in its `AppConfig.ready()`. What is registered only starts threads: it neither waits nor raises, so
that a process starts whatever does not answer.
"""

from collections.abc import Callable

_registry: dict[str, Callable[[], None]] = {}


def register_start(name: str, begin: Callable[[], None]) -> None:
    """`begin` is called by every process that serves; the same name replaces."""
    _registry[name] = begin


def begin_all() -> None:
    """For the process that has just loaded Django."""
    for begin in _registry.values():
        begin()
