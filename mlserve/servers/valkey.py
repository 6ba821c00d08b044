"""An embedded Valkey: the cache, which evicts and may lose everything, or the broker, which does neither."""

import signal
import socket
import urllib.parse
from pathlib import Path

from mlserve.servers.place import valkey_binary
from mlserve.servers.process import (
    LOOPBACK,
    Account,
    EmbeddedServerError,
    Health,
    choose_port,
    failure,
    processes_in,
    say,
    send,
    spawn,
    wait_until_alive,
    wait_until_gone,
)
from mlserve.servers.record import Record, new_password

CACHE_SETTINGS = {
    "maxmemory": "256mb",
    "maxmemory-policy": "volatile-lfu",
    "appendonly": "no",
    # Records of a feature group are longer than the default of 64 bytes; in a compact hash they take half the memory.
    "hash-max-listpack-value": "2048",
}
BROKER_SETTINGS = {"maxmemory-policy": "noeviction", "appendonly": "yes"}
_EXECUTABLE = "valkey-server"
_START_LIMIT_S = 60.0  # reading a large append-only file
_PROBE_LIMIT_S = 5.0
_STOP_LIMIT_S = 10.0
_PORT_ATTEMPTS = 5


class ValkeyServer:
    """One Valkey 9 below `home`, on the loopback interface, with a password."""

    def __init__(
        self, home: Path, *, name: str, settings: dict[str, str], account: Account, durable: bool = True
    ) -> None:
        self.name = name
        self._home = home
        self._settings = settings
        self._account = account
        self._durable = durable
        self.directory = home / name
        self.data = self.directory / "data"
        self.log = self.directory / "valkey.log"
        self._record_path = self.directory / "server.json"
        self._configuration = self.directory / "valkey.conf"

    @property
    def record(self) -> Record | None:
        return Record.read(self._record_path)

    @property
    def url(self) -> str | None:
        record = self.record
        return None if record is None else f"redis://:{record.password}@{LOOPBACK}:{record.port}/0"

    def health(self) -> Health:
        url = self.url
        return Health.ABSENT if url is None else probe(url)

    def pids(self) -> list[int]:
        return processes_in(self.data, executable=_EXECUTABLE)

    def ensure(self) -> str:
        """The URL of the running server, started if need be. The caller holds the lock on the services."""
        health = self.health()
        if health is Health.STARTING:
            wait_until_alive(self.health, name=self.name, log=self.log, process=None, limit_s=_START_LIMIT_S)
        elif health is Health.ABSENT:
            say(f"starting Valkey ({self.name})")
            self.kill()
            self._start()
        assert self.url is not None
        return self.url

    def stop(self) -> None:
        """Shuts down, the append-only file complete; by force if that takes too long."""
        send(self.pids(), signal.SIGTERM)
        if not wait_until_gone(self.pids, limit_s=_STOP_LIMIT_S):
            self.kill()

    def kill(self) -> None:
        """kill -9; returns when it is gone. A frozen server dies too."""
        send(self.pids(), signal.SIGKILL)
        if not wait_until_gone(self.pids, limit_s=_STOP_LIMIT_S):
            raise failure(f"Valkey processes {self.pids()} in {self.data} survive kill -9", log=self.log)

    def version(self) -> str | None:
        url = self.url
        if url is None:
            return None
        for line in ask(url, "INFO server").splitlines():
            if line.startswith("valkey_version:"):
                return line.partition(":")[2].strip()
        return None

    def _start(self) -> None:
        self._account.make_passage(self.directory)
        self._account.make_folder(self.data)
        binary = valkey_binary(self._home, account=self._account)
        record = self.record
        password = record.password if record else new_password()
        port = record.port if record else None
        for attempt in range(_PORT_ATTEMPTS):
            record = Record(port=choose_port(port if attempt == 0 else None), password=password)
            record.write(self._record_path)
            self._write_configuration(record)
            begin = self.log.stat().st_size if self.log.exists() else 0
            process = spawn([binary, self._configuration], directory=self.data, log=self.log, account=self._account)
            try:
                wait_until_alive(self.health, name=self.name, log=self.log, process=process, limit_s=_START_LIMIT_S)
            except EmbeddedServerError:
                if process.poll() is None:
                    self.kill()
                # Somebody took the port between our look and the server's bind: try another one.
                if b"Could not create server TCP" in self.log.read_bytes()[begin:] and attempt + 1 < _PORT_ATTEMPTS:
                    continue
                raise
            return

    def _write_configuration(self, record: Record) -> None:
        # In a file and not on the command line, where every user of the machine could read the password.
        settings = {
            "bind": LOOPBACK,
            "port": str(record.port),
            "requirepass": record.password,
            "dir": f'"{self.data}"',
            "daemonize": "no",
            "save": '""',
            "appendfsync": "everysec" if self._durable else "no",
            **self._settings,
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        self._account.write_secret(self._configuration, text)


def probe(url: str) -> Health:
    """Whether a Valkey that knows our password answers at `url`."""
    try:
        answer = ask(url, "PING")
    except OSError:
        return Health.ABSENT
    if answer.startswith("-LOADING"):
        return Health.STARTING
    return Health.ALIVE if answer.startswith("+PONG") else Health.ABSENT


def ask(url: str, command: str) -> str:
    """The raw answer to one command, after authentication. Raises OSError, TimeoutError among them.

    By hand, because redis-py costs every command 100 ms to import.
    """
    parts = urllib.parse.urlsplit(url)
    where = (parts.hostname or LOOPBACK, parts.port or 6379)
    with socket.create_connection(where, timeout=_PROBE_LIMIT_S) as peer, peer.makefile("rb") as answers:
        peer.sendall(f"AUTH {parts.password}\r\n".encode())
        greeting = answers.readline()
        if not greeting.startswith(b"+OK"):
            return greeting.decode(errors="replace")
        peer.sendall(f"{command}\r\n".encode())
        line = answers.readline()
        if line.startswith(b"$") and line != b"$-1\r\n":
            return answers.read(int(line[1:])).decode(errors="replace")
        return line.decode(errors="replace")
