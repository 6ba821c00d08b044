"""The production path on servers that the test fixtures start."""

from mlserve.settings.base import *  # noqa: F403

SECRET_KEY = "only-for-tests-" + "x" * 50
CACHE_MAC_KEY = ""
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Tests empty the tables between them; the trigger that refuses this is tested with the setting switched off.
DATABASES["default"]["OPTIONS"]["options"] = "-c mlserve.purge=on"  # noqa: F405
