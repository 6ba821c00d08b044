"""The admin site of the operators: Django's own, with the cache overview as its first entry."""

import time
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse

from mlserve.console.overview import PERMISSION, cache_overview, summary_line


class ConsoleAdminSite(admin.AdminSite):
    site_header = "mlserve console"
    site_title = "mlserve console"
    index_title = "Operations"
    index_template = "console/index.html"
    site_url = "/docs"

    def get_urls(self) -> list[URLPattern | URLResolver]:
        page = path("cache/", self.admin_view(self.cache_overview), name="cache_overview")
        return [page, *super().get_urls()]

    def cache_overview(self, request: HttpRequest) -> TemplateResponse:
        return cache_overview(request, site=self, now=time.time())

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[dict[str, Any]]:
        app_list = super().get_app_list(request, app_label)
        if app_label is None and request.user.has_perm(PERMISSION):
            app_list.insert(0, _overview_entry())
        return app_list

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        summary = summary_line(time.time()) if request.user.has_perm(PERMISSION) else ""
        return super().index(request, {**(extra_context or {}), "cache_summary": summary})


def _overview_entry() -> dict[str, Any]:
    """As if it were a model: so the sidebar and the first page list it like everything else."""
    url = reverse("admin:cache_overview")
    return {
        "name": "Cache",
        "app_label": "console",
        "app_url": url,
        "has_module_perms": True,
        "models": [
            {
                "name": "Overview",
                "object_name": "CacheOverview",
                "perms": {"add": False, "change": False, "delete": False, "view": True},
                "admin_url": url,
                "add_url": None,
                "view_only": True,
            }
        ],
    }
