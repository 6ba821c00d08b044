"""All addresses of the service, and the empty view."""

from django.urls import URLPattern, URLResolver, path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from mlserve import urls


class EmptyView(APIView):
    """REST framework with nothing to do: no key, no body read, an empty answer."""

    authentication_classes = ()
    permission_classes = ()

    def post(self, _request: Request) -> Response:
        return Response({})


EMPTY_PATH = "v1/scores-empty"
"""Begins as the scores' address does, so that the middleware treats both alike: the same log level and headers."""

urlpatterns: list[URLPattern | URLResolver] = [*urls.urlpatterns, path(EMPTY_PATH, EmptyView.as_view())]
