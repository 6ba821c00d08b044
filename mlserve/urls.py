"""Every address of the service."""

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView

from mlserve.api.views import DocsView, LiveView, OpenApiView, ReadyView
from mlserve.observability.exposition import MetricsView

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(pattern_name="docs"), name="root"),
    # Included by name: the platform knows no app by import.
    path("v1/", include("predictions.api.urls")),
    path("v1/", include("features.api.urls")),
    path("healthz/live", LiveView.as_view(), name="live"),
    path("healthz/ready", ReadyView.as_view(), name="ready"),
    path("metrics", MetricsView.as_view(), name="metrics"),
    path("openapi.json", OpenApiView.as_view(), name="openapi"),
    path("docs", DocsView.as_view(), name="docs"),
    path("admin/", admin.site.urls),
    path("favicon.ico", RedirectView.as_view(url=f"/{settings.STATIC_URL.strip('/')}/console/icon.svg"), name="icon"),
]

handler400 = "mlserve.api.problems.bad_request"
handler403 = "mlserve.api.problems.permission_denied"
handler404 = "mlserve.api.problems.page_not_found"
handler500 = "mlserve.api.problems.server_error"
