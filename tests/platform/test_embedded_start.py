"""Starting the embedded servers when two want to, and after a crash of the command that starts them."""

import contextlib
import signal
import subprocess
from pathlib import Path

import pytest

from mlserve.embedded import Servers
from tests.platform.playground import select_one, start_in_subprocess


def test_two_processes_that_race_get_the_same_servers(root: Path) -> None:
    """Two commands that start at once share one PostgreSQL and two Valkeys."""
    racers = [start_in_subprocess(root, "postgres", "cache", "broker") for _ in range(2)]
    answers = [racer.communicate(timeout=60) for racer in racers]

    assert [racer.returncode for racer in racers] == [0, 0], answers
    assert answers[0][0] == answers[1][0] != ""
    errors = "".join(error for _, error in answers)
    assert errors.count("starting PostgreSQL") == errors.count("starting Valkey (cache)") == 1
    assert len(Servers(root).pids("cache")) == len(Servers(root).pids("broker")) == 1


DIE = """
import os, signal, subprocess
import mlserve.embedded, mlserve.servers.postgres as postgres
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
"""
INITDB_RUNS = """
run = subprocess.run
def run_or_die(command, **options):
    if "initdb" not in str(command[0]) or "--version" in command:
        return run(command, **options)
    subprocess.Popen(command, **options)
    die()
subprocess.run = run_or_die
"""


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(INITDB_RUNS, id="while initdb runs"),
        pytest.param("postgres.Record.write = die", id="before the new cluster gets its name"),
        pytest.param("postgres.PostgresServer._start = die", id="before the server starts"),
        pytest.param("postgres.wait_until_alive = die", id="while the server starts"),
        pytest.param("mlserve.embedded.write_json = die", id="before the state is written"),
    ],
)
def test_a_killed_start_does_not_block_the_next(root: Path, moment: str) -> None:
    """kill -9 of the starting command at any moment leaves nothing that the next start cannot clear away."""
    killed = start_in_subprocess(root, "postgres", before=DIE + moment + "\n")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL

    servers = Servers(root, durable=False)
    servers.up(["postgres"])

    assert select_one(servers) == 1
    assert not list((root / "servers").glob(".postgres-init-*"))


@pytest.mark.torture
def test_starts_killed_at_random_moments_never_block(root: Path) -> None:
    """Forty commands killed with -9 after 0 to 1.6 s, one after the other, and then one that works."""
    for round_number in range(40):
        racer = start_in_subprocess(root, "postgres", "cache", "broker")
        with contextlib.suppress(subprocess.TimeoutExpired):
            racer.wait(timeout=round_number * 0.04)
        racer.kill()
        racer.communicate()
        if round_number % 5 == 4:
            Servers(root).kill("postgres")

    servers = Servers(root, durable=False)
    servers.up()
    assert select_one(servers) == 1
