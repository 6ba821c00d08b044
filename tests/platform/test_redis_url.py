"""The forms of REDIS_CACHE_URL: what each means, and what is said about one that is wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.embedded import var_dir
from mlserve.settings.env import child_environment
from mlserve.settings.redis_url import Mode, RedisUrlError, l2_alias, parse, partitions

ROOT = Path(__file__).resolve().parents[2]


def _options(url: str) -> dict[str, Any]:
    options: dict[str, Any] = l2_alias(url, timeout_s=0.06)["OPTIONS"]
    return options


@pytest.mark.parametrize(
    "url", ["redis://:pw@host:6379/2", "rediss://u:p@host/0", "unix:///run/valkey.sock?db=0", "redis://[::1]:7000"]
)
def test_one_server_is_handed_on_as_it_is(url: str) -> None:
    """django-redis reads these itself."""
    alias = l2_alias(url, timeout_s=0.05)
    assert alias["LOCATION"] == url
    assert "CLIENT_CLASS" not in alias["OPTIONS"]
    assert partitions(url) == 1


def test_sentinels_are_listed_with_their_service() -> None:
    """Each Sentinel has its share of the time; names keep their case, passwords are decoded."""
    url = "redis+sentinel://cache%40user:p%2Fw%3A%40@one.example.com:26380,[2001:db8::1],three/My.Service/3?sentinel_password=s%26s"
    address = parse(url)
    assert address.mode is Mode.SENTINEL
    options = _options(url)
    assert options["SENTINELS"] == [("one.example.com", 26380), ("2001:db8::1", 26379), ("three", 26379)]
    assert options["SENTINEL_SERVICE"] == "My.Service"
    assert (options["USERNAME"], options["PASSWORD"]) == ("cache@user", "p/w:@")
    assert options["SENTINEL_KWARGS"] == {"socket_timeout": 0.02, "socket_connect_timeout": 0.02, "password": "s&s"}
    assert l2_alias(url, timeout_s=0.06)["LOCATION"].endswith("/3")
    assert partitions(url) == 1


def test_a_cluster_is_its_seeds() -> None:
    """Sixteen partitions, so that its nodes have something each."""
    url = "redis+cluster://:p%25w@one:7000,[::1]:7001,two"
    options = _options(url)
    assert options["CLUSTER_NODES"] == [("one", 7000), ("::1", 7001), ("two", 6379)]
    assert options["PASSWORD"] == "p%w"
    assert partitions(url) == 16


@pytest.mark.parametrize("scheme", ["sentinel", "cluster"])
def test_an_s_means_tls_to_every_node(scheme: str) -> None:
    """For the servers, and for the Sentinels too."""
    options = _options(f"rediss+{scheme}://host/{'s' if scheme == 'sentinel' else ''}")
    assert options["CONNECTION_POOL_KWARGS"]["ssl"] is True
    if scheme == "sentinel":
        assert options["SENTINEL_KWARGS"]["ssl"] is True


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://:secret@host:26379", "service"),
        ("redis+sentinel://:secret@host:26379//0", "service"),
        ("redis+sentinel://:secret@host/service/first", "database"),
        ("redis+sentinel://:secret@host/ser vice/0", "service name"),
        ("redis+sentinel://:secret@host/s?sentinel_pasword=secret", "sentinel_password"),
        ("redis+sentinel://:secret@host:99999/s", "1 to 65535"),
        ("redis+sentinel://:secret@host:/s", "1 to 65535"),
        ("redis+sentinel://:secret@/s", "empty host"),
        ("redis+cluster://:secret@host:7000,", "empty host"),
        ("redis+cluster://:secret@host:7000/1", "database 0"),
        ("redis+cluster://:secret@host:7000?db=1", "unknown options"),
        ("redis+cluster://:secret@::1:7000", "brackets"),
        ("redis+cluster://:secret", "cannot be read"),
        ("redis+cluster://user:secret", "1 to 65535"),
        ("redis+cluster://secret@host:7000", ":password@"),
        ("redis://:secret@one:6379,two:6379/0", "redis+sentinel://"),
        ("redis://:secret@host:port/0", "host:port"),
        ("redis://:sec/ret@host:6379/0", "percent-encode"),
        ("redis://:secret@host:6379/zero", "database"),
        ("redis://:secret@/0", "no host"),
        ("redis://:sec#ret@host/0", "%23"),
        ("unix://", "socket"),
        ("http://:secret@host/0", "redis://"),
        (":secret@host:6379", "no scheme"),
        ("secret", "no scheme"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, said: str) -> None:
    """The message says which part, and how to write it."""
    with pytest.raises(RedisUrlError) as raised:
        parse(url)
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


@given(st.text(max_size=40), st.sampled_from(["redis://", "redis+sentinel://", "redis+cluster://", "unix://", ""]))
def test_any_text_is_an_address_or_a_clear_error(text: str, scheme: str) -> None:
    """Nothing else is ever raised; an alias can be made of whatever is accepted."""
    try:
        parse(scheme + text)
    except RedisUrlError:
        return
    l2_alias(scheme + text, timeout_s=0.05)


def test_the_variable_is_named_beside_all_other_mistakes() -> None:
    """One message for the whole environment, and no password in it."""
    wrong = {"REDIS_CACHE_URL": "redis+cluster://:hunter2@host:x", "MLSERVE_CACHE_PARTITIONS": "0"}
    done = _settings("CACHES", **wrong)
    assert done.returncode != 0
    assert "REDIS_CACHE_URL: the port of host is no number" in done.stderr
    assert "MLSERVE_CACHE_PARTITIONS" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "1"),
        ({"REDIS_CACHE_URL": "redis+cluster://host"}, "16"),
        ({"REDIS_CACHE_URL": "redis+cluster://host", "MLSERVE_CACHE_PARTITIONS": "64"}, "64"),
        ({"MLSERVE_CACHE_PARTITIONS": "4"}, "4"),
    ],
)
def test_the_number_of_partitions_follows_the_form(changes: dict[str, str], expected: str) -> None:
    """Unless somebody says it."""
    assert _settings("CACHE_PARTITIONS", **changes).stdout.strip() == expected


def _settings(name: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = child_environment(
        DJANGO_SETTINGS_MODULE="mlserve.settings.test", MLSERVE_VAR_DIR=str(var_dir()), **changes
    )
    code = f"from django.conf import settings; print(settings.{name})"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
