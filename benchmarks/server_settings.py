"""The service as it runs on one machine, with one address more: the empty view that scores are compared with."""

from mlserve.settings.local import *  # noqa: F403

ROOT_URLCONF = "benchmarks.server_urls"
