"""The admin site of the operators: Django's own, with the cache overview as its first entry."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import SEARCH_VAR
from django.core.exceptions import SuspiciousOperation
from django.http import Http404, HttpRequest, QueryDict
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse

from mlserve.console.overview import PERMISSION, cache_overview, summary_line

_NUL = "\0"
View = Callable[..., HttpResponseBase]


class ConsoleAdminSite(admin.AdminSite):
    site_header = "mlserve console"
    site_title = "mlserve console"
    index_title = "Operations"
    index_template = "console/index.html"
    site_url = "/docs"

    def get_urls(self) -> list[URLPattern | URLResolver]:
        page = path("cache/", self.admin_view(self.cache_overview), name="cache_overview")
        return [page, *super().get_urls()]

    def admin_view(self, view: View, cacheable: bool = False) -> Any:
        """As Django's; and no page of the admin ever hands a NUL to PostgreSQL, which would refuse it with an error."""
        return super().admin_view(_without_nul(view), cacheable)

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


def _without_nul(view: View) -> View:
    """Nothing is stored under an address with a NUL: 404. No form of a browser sends one: 400.

    Search boxes are left to Django, which says in words what is wrong.
    """

    @wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if _NUL in request.path_info or _holds_nul(request.GET, besides=SEARCH_VAR):
            raise Http404
        if request.method == "POST" and _holds_nul(request.POST):
            raise SuspiciousOperation("A NUL character in a form.")
        return view(request, *args, **kwargs)

    return checked


def _holds_nul(fields: QueryDict, *, besides: str | None = None) -> bool:
    return any(
        _NUL in name or (name != besides and any(_NUL in str(value) for value in values))
        for name, values in fields.lists()
    )


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
