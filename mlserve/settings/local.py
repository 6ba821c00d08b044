"""On one machine, with the embedded servers, over plain HTTP. Refuses nothing that a laptop needs."""

from mlserve.settings import env
from mlserve.settings.base import *  # noqa: F403
from mlserve.settings.local_secret import local_secret_key

SECRET_KEY = SECRET_KEY or local_secret_key(VAR_DIR)  # noqa: F405
if env.CACHE_MAC_KEY != env.MAC_OFF:
    CACHE_MAC_KEY = CACHE_MAC_KEY or local_secret_key(VAR_DIR, "cache_mac_key")  # noqa: F405
