"""The service with the addresses of `raising_urls`: `granian tests.abuse.raising_service:application`."""

from django.conf import settings

from mlserve.wsgi import application

__all__ = ["application"]

settings.ROOT_URLCONF = "tests.abuse.raising_urls"
