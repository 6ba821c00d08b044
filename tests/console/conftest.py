"""People, metric files of their own and an empty series."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from redis import Redis

from mlserve.console.figures import STREAM, broker_client
from mlserve.console.operators import GROUP_NAME
from tests.console.metric_files import MetricFiles


@pytest.fixture
def metrics_dir(tmp_path: Path, settings: Any) -> Path:
    """Where the console reads: no other test counts here."""
    settings.METRICS_DIR = tmp_path / "metrics"
    settings.METRICS_DIR.mkdir()
    return Path(settings.METRICS_DIR)


@pytest.fixture
def files(metrics_dir: Path) -> MetricFiles:
    """The files of a process that lives: this one."""
    return MetricFiles(metrics_dir, os.getpid())


@pytest.fixture
def series() -> Iterator[Redis]:
    """A client of the broker, whose series is empty before and after."""
    client = broker_client()
    client.delete(STREAM)
    yield client
    client.delete(STREAM)
    client.close()


@pytest.fixture
def superuser(db: None) -> User:
    return User.objects.create_superuser("root", password="a-long-password")


@pytest.fixture
def operator(db: None) -> User:
    user = User.objects.create_user("olga", password="a-long-password", is_staff=True)
    user.groups.add(Group.objects.get(name=GROUP_NAME))
    return user


@pytest.fixture
def as_operator(operator: User) -> Client:
    client = Client()
    client.force_login(operator)
    return client


@pytest.fixture
def as_superuser(superuser: User) -> Client:
    client = Client()
    client.force_login(superuser)
    return client
