"""For Django's tests of its caches alone: their app, and a database of the tests' PostgreSQL."""

import dj_database_url

from mlserve.settings import env

SECRET_KEY = "only-for-tests-" + "x" * 50
INSTALLED_APPS = ["cache"]
DATABASES = {"default": {**dj_database_url.parse(env.DATABASE_URL), "TEST": {"NAME": "test_django_cache_suite"}}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
