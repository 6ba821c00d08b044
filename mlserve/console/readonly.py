"""Admin pages that only show: records whose every change has another, checked way."""

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.utils.text import capfirst


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # stubs make it generic, Django does not
    """Listed and looked at with the view permission; added, changed and deleted by nobody, superusers included.

    `empty_hint` is what an empty list says: where such records come from.
    """

    list_per_page = 50
    show_full_result_count = False
    actions: Any = ()
    change_form_template: ClassVar[str | None] = "console/record.html"
    change_list_template = "console/records.html"
    empty_hint = ""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        title = capfirst(str(self.opts.verbose_name_plural))
        context = {"title": title, "empty_hint": self.empty_hint, **(extra_context or {})}
        return super().changelist_view(request, context)

    def has_add_permission(self, _request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, _request: HttpRequest, _obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, _request: HttpRequest, _obj: Model | None = None) -> bool:
        return False
