"""The embedded servers after crashes of their own, and after their files were lost or fell into wrong hands."""

import os
import shutil
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mlserve.embedded import Servers
from mlserve.servers.process import EmbeddedServerError
from tests.platform.playground import select_one


@pytest.fixture(autouse=True)
def _all_running(playground: Servers) -> None:
    playground.up()


def _directory(playground: Servers, name: str) -> Path:
    return next(Path(server.directory) for server in playground.status() if server.name == name)


@pytest.mark.parametrize("name", ["postgres", "cache", "broker"])
def test_a_killed_server_comes_back_under_its_url(playground: Servers, name: str) -> None:
    """After kill -9 the next start answers at the same address with the same password."""
    before = playground.running()
    playground.kill(name)
    assert playground.running().get(name) is None

    assert playground.up() == before


def test_committed_rows_survive_kill_9(playground: Servers) -> None:
    """PostgreSQL replays its log after kill -9 of all its processes."""
    url = playground.running().get("postgres")
    assert url is not None
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE survivor AS SELECT 42 AS answer")

    playground.kill("postgres")
    playground.up()

    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM survivor").fetchone() == (42,)


def test_a_killed_postmaster_leaves_no_orphans_beside_the_new_server(playground: Servers) -> None:
    """Backends that outlive their postmaster are ended before a new one opens the same data."""
    url = playground.running().get("postgres")
    assert url is not None
    with psycopg.connect(url) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # so that it cannot notice that its postmaster is gone
        os.kill(playground.pids("postgres")[0], signal.SIGKILL)

        playground.up()

    assert backend not in playground.pids("postgres")
    assert select_one(playground) == 1


def test_a_stale_pid_file_with_a_reused_pid_does_not_block(playground: Servers) -> None:
    """PostgreSQL refuses to start if another process of its user has the id in postmaster.pid; we see through that."""
    pid_file = _directory(playground, "postgres") / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    playground.kill("postgres")
    somebody = playground.pids("cache")[0]  # runs as the same user
    pid_file.write_text("\n".join([str(somebody), *lines[1:]]) + "\n")

    playground.up()

    assert select_one(playground) == 1
    assert playground.pids("cache") == [somebody]


@pytest.mark.parametrize("damage", ["", "{", '"text"', '{"database_url": 5}'])
def test_a_broken_state_file_is_written_anew(playground: Servers, damage: str) -> None:
    """services.json is a summary: torn or lost, it is made again from what runs, and nothing restarts."""
    before, pids = playground.running(), playground.pids("cache")
    (playground.root / "services.json").write_text(damage)

    assert playground.up() == before
    assert playground.pids("cache") == pids
    assert (playground.root / "services.json").stat().st_mode & 0o777 == 0o600


def test_a_frozen_server_is_replaced(playground: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that holds its port and never answers is killed and started again."""
    monkeypatch.setattr("mlserve.servers.valkey._PROBE_LIMIT_S", 0.2)
    frozen = playground.pids("broker")
    playground.freeze("broker")

    playground.up()

    assert playground.pids("broker") != frozen
    assert len(playground.pids("broker")) == 1


def test_a_taken_port_is_left_to_its_holder(playground: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """If somebody else has the port now, the server moves to another one."""
    monkeypatch.setattr("mlserve.servers.valkey._PROBE_LIMIT_S", 0.2)
    before = playground.running().get("cache")
    assert before is not None
    playground.kill("cache")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", urlsplit(before).port))
        holder.listen()

        after = playground.up().get("cache")

    assert after is not None
    assert urlsplit(after).port != urlsplit(before).port
    assert urlsplit(after).password == urlsplit(before).password


def test_servers_whose_folder_was_deleted_are_not_left_running(root: Path) -> None:
    """`rm -rf var` under running servers does not leave them behind for ever."""
    servers = Servers(root, durable=False)
    servers.up(["cache"])
    orphans = servers.pids("cache")
    shutil.rmtree(root)

    servers.up(["cache"])

    assert len(servers.pids("cache")) == 1
    assert servers.pids("cache") != orphans


def test_only_the_asked_servers_start(root: Path) -> None:
    """Where DATABASE_URL is set, no PostgreSQL is started for nothing."""
    urls = Servers(root, durable=False).up(["broker"])
    assert urls.get("broker") is not None
    assert urls.get("postgres") is urls.get("cache") is None


def test_nobody_enters_without_the_password(playground: Servers) -> None:
    """Both kinds of server refuse a wrong password and none."""
    urls = playground.running()
    database, cache = urls.get("postgres"), urls.get("cache")
    assert database is not None
    assert cache is not None
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(database, password="wrong")
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=urlsplit(cache).port or 0, retry=Retry(NoBackoff(), 0)).ping()


def test_servers_listen_on_the_loopback_interface_only(playground: Servers) -> None:
    """No other machine can reach them."""
    database, cache = playground.running().get("postgres"), playground.running().get("cache")
    assert database is not None
    assert cache is not None
    with psycopg.connect(database) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
    assert redis.Redis.from_url(cache, decode_responses=True).config_get("bind") == {"bind": "127.0.0.1"}


def test_settings_are_those_of_the_trade(playground: Servers) -> None:
    """The cache evicts by policy, the broker never; PostgreSQL speaks UTF-8 and UTC."""
    urls = playground.running()
    cache, broker, database = urls.get("cache"), urls.get("broker"), urls.get("postgres")
    assert cache is not None
    assert broker is not None
    assert database is not None
    facts = redis.Redis.from_url(cache, decode_responses=True).config_get("maxmemory*")
    assert facts["maxmemory-policy"] == "volatile-lfu"
    assert facts["maxmemory"] == str(256 * 2**20)
    kept = redis.Redis.from_url(broker, decode_responses=True).config_get("maxmemory-policy", "appendonly")
    assert kept == {"maxmemory-policy": "noeviction", "appendonly": "yes"}
    with psycopg.connect(database) as connection:
        for setting, value in {"server_encoding": "UTF8", "timezone": "UTC", "max_connections": "200"}.items():
            assert connection.execute(f"SHOW {setting}").fetchone() == (value,)


def test_data_belong_to_the_servers_user_only(playground: Servers) -> None:
    """Data folders are 0700; what holds passwords is readable by its owner only."""
    for name in ("postgres", "cache", "broker"):
        folder = _directory(playground, name)
        assert (folder / "data").stat().st_mode & 0o777 == 0o700
        assert (folder / "server.json").stat().st_mode & 0o777 == 0o600
    assert (_directory(playground, "cache") / "valkey.conf").stat().st_mode & 0o777 == 0o600


def test_a_server_that_cannot_start_says_why(playground: Servers) -> None:
    """The error names the log and quotes its end."""
    folder = _directory(playground, "postgres")
    playground.down(["postgres"])
    control = folder / "data" / "global" / "pg_control"
    control.rename(control.with_suffix(".away"))
    try:
        with pytest.raises(EmbeddedServerError) as caught:
            playground.up(["postgres"])
    finally:
        control.with_suffix(".away").rename(control)
    assert str(folder / "postgres.log") in str(caught.value)
    assert "pg_control" in str(caught.value)


def test_servers_outlive_ctrl_c(playground: Servers) -> None:
    """Servers sit in sessions of their own: a terminal's Ctrl-C goes to the command, not to them."""
    for name in ("postgres", "cache", "broker"):
        main = playground.pids(name)[0]
        assert os.getsid(main) == main != os.getsid(0)
