"""API keys in the admin: made, given a limit, and revoked; otherwise never changed, never shown again."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from mlserve.api.keys import NAME_CHARACTERS_MAX, issue_key, revoke_key, set_limit
from mlserve.api.limit import MOST_PER_S, limit_in_words
from mlserve.api.models import ApiKey

_LIMITS = {
    "rate_per_s": (
        0,
        "Again and again; each item of a batch counts. Empty: as the settings say; 0: no limit.",
    ),
    "burst": (1, "After a pause; at least as many as its largest batch has items. Empty: as many as in one second."),
}


class ApiKeyLimitForm(forms.ModelForm):  # type: ignore[type-arg]
    """All that can be changed about a key that was given out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, (least, meaning) in _LIMITS.items():
            field = self.fields.get(name)
            if field is None:  # somebody who may only look
                continue
            field.help_text = f"{meaning} {least} to {MOST_PER_S:,}."
            field.error_messages["invalid"] = f"A whole number from {least} to {MOST_PER_S:,}, or nothing."

    class Meta:
        model = ApiKey
        fields: tuple[str, ...] = ("rate_per_s", "burst")


class ApiKeyForm(ApiKeyLimitForm):
    """What a new key needs: a name and scopes."""

    name = forms.CharField(
        max_length=NAME_CHARACTERS_MAX,
        help_text=f"Who uses it, at most {NAME_CHARACTERS_MAX} characters.",
        error_messages={"required": "Say who uses the key."},
    )
    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, f"{scope.value}: {scope.label}") for scope in ApiKey.Scope],
        widget=forms.CheckboxSelectMultiple,
        help_text="They cannot be changed later.",
        error_messages={"required": "Choose at least one: a key without a scope may do nothing."},
    )

    class Meta(ApiKeyLimitForm.Meta):
        fields = ("name", "scopes", "rate_per_s", "burst")


class _StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, str]]:
        return [("valid", "valid"), ("revoked", "revoked")]

    def queryset(self, _request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        match self.value():
            case "valid":
                return queryset.filter(revoked_at=None)
            case "revoked":
                return queryset.exclude(revoked_at=None)
        return queryset


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The key stands in the message after saving, once."""

    form = ApiKeyForm
    list_display = ("name", "prefix", "shown_scopes", "shown_limit", "created_at", "revoked_at")
    list_filter = (_StateFilter,)
    search_fields = ("name", "prefix")
    search_help_text = "A part of the name, or the key's first characters."
    actions = ("revoke",)

    class Media:
        css: ClassVar = {"all": ("console/console.css",)}

    def get_form(self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **{"form": ApiKeyLimitForm if obj else ApiKeyForm, **kwargs})

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        limit = ("rate_per_s", "burst")
        return (
            ("name", "prefix", "shown_scopes", "shown_limit", *limit, "created_at", "revoked_at")
            if obj
            else ("name", "scopes", *limit)
        )

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        shown = ("name", "prefix", "shown_scopes", "shown_limit", "created_at", "revoked_at")
        return shown if obj else ()

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Makes the key, or gives one another limit."""
        limit = {name: form.cleaned_data[name] for name in ("rate_per_s", "burst")}
        if change:
            set_limit(obj, **limit)
            if form.changed_data:
                message = f"The limit of {obj} is {self.shown_limit(obj)}; every process obeys within a second."
                self.message_user(request, message, messages.INFO)
            return
        issued = issue_key(name=form.cleaned_data["name"], scopes=form.cleaned_data["scopes"], **limit)
        obj.pk, obj.prefix = issued.record.pk, issued.record.prefix
        obj.refresh_from_db()
        shown = format_html("The key of {}: <code>{}</code> Copy it now, it is shown this once.", obj.name, issued.key)
        self.message_user(request, shown, messages.WARNING)

    @admin.display(description="scopes")
    def shown_scopes(self, record: ApiKey) -> str:
        return ", ".join(record.scopes)

    @admin.display(description="limit in force")
    def shown_limit(self, record: ApiKey) -> str:
        return limit_in_words(rate_per_s=record.rate_per_s, burst=record.burst)

    @admin.action(description="Revoke the selected keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        now = datetime.now(UTC)
        count = 0
        for record in queryset:
            if revoke_key(record, now=now):
                self.log_change(request, record, "Revoked.")
                count += 1
        self.message_user(request, f"{count} revoked; every process obeys within a second.", messages.SUCCESS)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("api.change_apikey")

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False
