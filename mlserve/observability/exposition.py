"""`/metrics`: the counters of all processes of this host, added up, and what is measured at that moment."""

from ipaddress import ip_address

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from prometheus_client import CollectorRegistry, generate_latest
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from mlserve.api.api_view import ApiView
from mlserve.api.authentication import HasScope
from mlserve.observability.measurements import Measured
from mlserve.observability.metric_files import MetricFiles

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class LoopbackOrScope(BasePermission):
    """Lets this host itself through; everybody else needs the scope that the view states.

    A proxy on this host makes every request look local, so a forwarded one never counts as that.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Raises, like `HasScope`, to say what is missing."""
        return _is_local(request) or HasScope().has_permission(request, view)


class MetricsView(ApiView):
    """The text format, to whoever takes text, or OpenMetrics: scrapers name more than they need."""

    produces = "text/plain"

    permission_classes = [LoopbackOrScope]
    required_scope = "operate"

    @extend_schema(exclude=True)
    def get(self, _request: Request) -> HttpResponse:
        registry = CollectorRegistry()
        registry.register(MetricFiles(settings.METRICS_DIR))
        registry.register(Measured())
        return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE)


def _is_local(request: Request) -> bool:
    if "HTTP_X_FORWARDED_FOR" in request.META or "HTTP_FORWARDED" in request.META:
        return False
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False
