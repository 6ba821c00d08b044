"""T is no later than the snapshot that it speaks for, whatever happens between a statement's snapshot and its end."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest
from django.db import connection
from psycopg.conninfo import make_conninfo

from features.journal import Journal
from tests.features.sessions import conninfo

pytestmark = pytest.mark.django_db(transaction=True)


class HeldUp:
    """A proxy before PostgreSQL that can keep back the messages that execute a statement whose snapshot is taken."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.go_on = threading.Event()
        self.held = threading.Event()
        self.go_on.set()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # who reads it in a thread hears of it
            each.close()

    def _serve(self) -> None:
        with suppress(OSError):  # closed meanwhile
            self._pass_on()

    def _pass_on(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(self._server)
        self._sockets += [client, server]
        threading.Thread(target=self._answers, args=(client, server), daemon=True).start()
        messages = client.makefile("rb")
        # The first message has no letter.
        length = messages.read(4)
        server.sendall(length + messages.read(int.from_bytes(length, "big") - 4))
        while head := messages.read(5):
            body = messages.read(int.from_bytes(head[1:], "big") - 4)
            if head[:1] == b"E" and not self.go_on.is_set():
                self.held.set()
                self.go_on.wait()
            server.sendall(head + body)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldUp]:
    """Journals of this test connect through it, in the clear: it reads their messages."""
    known = connection.get_connection_params()
    proxy = HeldUp(str(known["host"]), int(known["port"]))
    through = {**known, "host": "127.0.0.1", "port": proxy.port, "sslmode": "disable", "gssencmode": "disable"}
    monkeypatch.setattr(connection, "get_connection_params", lambda: dict(through))
    yield proxy
    proxy.close()


def test_a_commit_after_the_snapshot_is_not_promised(held_up: HeldUp) -> None:
    """It is acknowledged before the statement ends, and later than T."""
    journal = Journal()
    before = journal.now()
    journal.since(before.snapshot)  # prepares the statement
    found = []
    held_up.go_on.clear()
    asking = threading.Thread(target=lambda: found.append(journal.since(before.snapshot)))
    asking.start()
    assert held_up.held.wait(10)
    with psycopg.connect(_past_the_proxy(), autocommit=True) as other:
        ((xid,),) = other.execute("SELECT pg_current_xact_id()::text").fetchall()
        ((acknowledged,),) = other.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
        held_up.go_on.set()
        asking.join()
        (span,) = found
        seen = "SELECT pg_visible_in_snapshot(%s::xid8, %s::pg_snapshot)"
        assert other.execute(seen, (xid, span.snapshot)).fetchall() == [(False,)]
    assert span.safe_time < acknowledged
    journal.close()


def _past_the_proxy() -> str:
    settings = connection.settings_dict
    return make_conninfo(conninfo(), host=str(settings["HOST"]), port=str(settings["PORT"]))
