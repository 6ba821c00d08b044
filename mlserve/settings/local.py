"""On one machine, with the embedded servers, over plain HTTP. Refuses nothing that a laptop needs."""

from mlserve.settings.base import *  # noqa: F403
from mlserve.settings.local_secret import local_secret_key

SECRET_KEY = SECRET_KEY or local_secret_key(VAR_DIR)  # noqa: F405
