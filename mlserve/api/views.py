"""The addresses that belong to no domain: health, the OpenAPI document and its page."""

from functools import cache
from typing import Any, Final

import msgspec
from django.http import HttpResponse
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from mlserve.api.api_view import ApiView, accepts
from mlserve.api.openapi import ALWAYS, answer, problems
from mlserve.health import CheckResult, Readiness, readiness

_RETRY_AFTER_S: Final = 2
_encode = msgspec.json.Encoder().encode


class Liveness(msgspec.Struct, frozen=True):
    """There is nothing else to say: a process that does not live does not answer."""

    status: str


def _example(status: Any, postgres: Any) -> Any:
    checks = {
        "postgres": CheckResult(status=postgres, required=True, detail="PostgreSQL 18 answers", ms=2.1),
        "cache": CheckResult(status="ok", required=False, detail="answers", ms=0.4),
    }
    return msgspec.to_builtins(Readiness(status=status, checks=checks))


class PublicView(ApiView):
    """A view that needs no key and looks at none."""

    authentication_classes = []
    permission_classes = [AllowAny]


class LiveView(PublicView):
    @extend_schema(
        operation_id="live",
        summary="Does the process live?",
        tags=["health"],
        responses={**answer(Liveness, "It lives", example={"status": "ok"}), **problems(*ALWAYS)},
    )
    def get(self, _request: Request) -> HttpResponse:
        """Touches nothing but the process itself: if this fails, restart it."""
        return HttpResponse(b'{"status":"ok"}', content_type="application/json")


class ReadyView(PublicView):
    @extend_schema(
        operation_id="ready",
        summary="Can the process score?",
        tags=["health"],
        responses={
            **answer(Readiness, "It can, perhaps degraded", example=_example("ready", "ok")),
            **answer(Readiness, "It cannot", example=_example("unavailable", "failed"), status=503),
            **problems(*ALWAYS),
        },
    )
    def get(self, _request: Request) -> HttpResponse:
        """503 if it has no model to score with; without Postgres, Valkey or the broker it is 200 and `degraded`."""
        result = readiness()
        if result.status == "unavailable":
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            return HttpResponse(_encode(result), status=503, content_type="application/json", headers=headers)
        return HttpResponse(_encode(result), content_type="application/json")


class OpenApiView(PublicView):
    """The whole document, OpenAPI 3.1, as `manage.py spectacular` writes it; as plain JSON to who asks for that."""

    produces = "application/vnd.oai.openapi+json"
    _also = "application/json"

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        if accepts(request._request.META.get("HTTP_ACCEPT", "*/*"), self._also):
            force = True
        return super().perform_content_negotiation(request, force)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        accepted = request._request.META.get("HTTP_ACCEPT", "*/*")
        plain = accepts(accepted, self._also) and not accepts(accepted, self.produces)
        return HttpResponse(_document(), content_type=self._also if plain else self.produces)


@cache
def _document() -> bytes:
    """Made once per process: it takes a third of a second, and anybody may ask for it."""
    document = SchemaGenerator().get_schema(request=None, public=True)
    rendered: bytes = OpenApiJsonRenderer().render(document)
    return rendered


class DocsView(PublicView, SpectacularSwaggerSplitView):
    """Swagger UI out of the sidecar package: its script, its style and the page's own are files, nothing is inline."""

    url_name = "openapi"
    template_name = "api/docs.html"
