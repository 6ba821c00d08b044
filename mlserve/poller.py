"""Keeps something current by asking for it again and again, off the request path.

A request reads what the last poll left behind and never waits for Postgres. The price is that every process runs
one thread per poller and sees a change up to one interval late.
"""

import os
import threading
import weakref
from collections.abc import Callable

import structlog
from django.db import DatabaseError, InterfaceError, close_old_connections, connections

from mlserve.errors import MlserveError
from mlserve.postgres.sessions import Kind, session_of

_log = structlog.get_logger(__name__)
_pollers: "weakref.WeakSet[Poller]" = weakref.WeakSet()


class Poller:
    """Calls `poll` at once and then every `interval_s` seconds in a daemon thread of this process.

    Polls never overlap, neither with each other nor with `poll_now`. An exception leaves the thread running; it is
    logged when it first occurs, when it changes its type and when it is over. The thread's database connections go
    back to the pool after every poll, so that an idle poller holds none; without a pool it keeps its one.

    `then` is called by the thread alone, after each poll, well or not, while others may poll: for what waits for a
    disk. It must not raise.

    Threads do not survive a fork: the child starts without one and gets it with its next `ensure_started`.
    """

    def __init__(
        self, name: str, interval_s: float, poll: Callable[[], None], *, then: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.interval_s = interval_s
        self._poll = poll
        self._then = then
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._polled = False
        self._forget_thread()
        _pollers.add(self)

    @property
    def error(self) -> Exception | None:
        """What the thread's last poll failed with; None if it (or a later `poll_now`) went well or none has run yet."""
        return self._error

    def ensure_started(self) -> None:
        """Starts the thread unless it runs; cheap enough for every request. Does not wait for the first poll."""
        if self._thread is not None:
            return
        with self._starting:
            if self._thread is None:
                self._stopped = threading.Event()
                thread = threading.Thread(
                    target=self._run, args=(self._stopped,), name=f"poll-{self.name}", daemon=True
                )
                thread.start()
                self._thread = thread

    def poll_now(self) -> None:
        """Polls once in the calling thread, after a poll that is under way; raises what `poll` raises.

        The caller's database connection is used and stays as it is, an open transaction included.
        """
        with self._polling:
            self._poll()
            self._note(None)

    def poll_first(self) -> None:
        """Returns at once if a poll has ended since the start, well or because the source is away; else polls here.

        A poll that is under way is waited for, and counts: however many call at once, they wait for one. Raises what
        that poll failed with.
        """
        with self._polling:
            error = self._error
            if not self._polled or not isinstance(error, None | DatabaseError | InterfaceError | MlserveError):
                try:
                    self._poll()
                except Exception as failure:
                    self._note(failure)
                    raise
                self._note(None)
            elif error is not None:
                raise error.with_traceback(None)

    def stop(self) -> None:
        """Ends the thread and waits for a poll that is under way. `ensure_started` starts a new one."""
        with self._starting:
            thread, self._thread = self._thread, None
            self._stopped.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            with self._polling:
                try:
                    with session_of(Kind.BACKGROUND):
                        self._poll()
                except Exception as error:  # whatever it was, the next poll may go well
                    self._note(error)
                else:
                    self._note(None)
                finally:
                    self._give_back()
            self._then()
            stopped.wait(self.interval_s)
        connections.close_all()

    @staticmethod
    def _give_back() -> None:
        """To the pool; where there is none, a working connection is kept for the next poll.

        Whatever comes of it, the thread goes on, and no connection is left that nobody will ever return.
        """
        try:
            close_old_connections()
        except Exception as error:
            _log.warning("poll_connection_dropped", error=f"{type(error).__name__}: {error}")
            connections.close_all()

    def _note(self, error: Exception | None) -> None:
        before, self._error, self._polled = self._error, error, True
        if type(error) is type(before):
            return
        if error is None:
            _log.info("poll_recovered", poller=self.name)
        else:
            _log.warning("poll_failed", poller=self.name, error=f"{type(error).__name__}: {error}")

    def _forget_thread(self) -> None:
        # The locks too: in a fork's child they may be held by a thread that does not exist there.
        self._starting = threading.Lock()
        self._polling = threading.RLock()
        self._stopped = threading.Event()
        self._thread = None
        self._error = None
        self._polled = False


def _forget_threads() -> None:
    for poller in list(_pollers):
        poller._forget_thread()


os.register_at_fork(after_in_child=_forget_threads)
