"""Every address of the service, and two whose handlers raise."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from rest_framework.request import Request

from mlserve import urls
from mlserve.api.views import PublicView

SECRET = "a detail that must stay here"


class RaisingView(PublicView):
    def get(self, _request: Request) -> HttpResponse:
        raise RuntimeError(SECRET)


def raise_beside_the_framework(_request: HttpRequest) -> HttpResponse:
    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, SECRET)


handler400, handler403 = urls.handler400, urls.handler403
handler404, handler500 = urls.handler404, urls.handler500
urlpatterns = [
    path("v1/raises", RaisingView.as_view()),
    path("v1/raises/plainly", raise_beside_the_framework),
    *urls.urlpatterns,
]
