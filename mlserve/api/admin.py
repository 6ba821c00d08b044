"""API keys in the admin: made, given a limit, and revoked; otherwise never changed, never shown again."""

from datetime import UTC, datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from mlserve.api.keys import NAME_CHARACTERS_MAX, issue_key, revoke_key, set_limit
from mlserve.api.limit import limit_in_words
from mlserve.api.models import ApiKey


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """What a new key needs: a name and scopes."""

    name = forms.CharField(max_length=NAME_CHARACTERS_MAX, help_text="Who uses it.")
    scopes = forms.MultipleChoiceField(choices=ApiKey.Scope.choices, widget=forms.CheckboxSelectMultiple)

    class Meta:
        model = ApiKey
        fields = ("name", "scopes", "rate_per_s", "burst")


class ApiKeyLimitForm(forms.ModelForm):  # type: ignore[type-arg]
    """All that can be changed about a key that was given out."""

    class Meta:
        model = ApiKey
        fields = ("rate_per_s", "burst")


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The key stands in the message after saving, once."""

    form = ApiKeyForm
    list_display = ("name", "prefix", "shown_scopes", "shown_limit", "created_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    search_fields = ("name", "prefix")
    actions = ("revoke",)

    def get_form(self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **{"form": ApiKeyLimitForm if obj else ApiKeyForm, **kwargs})

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        limit = ("rate_per_s", "burst")
        return (
            ("name", "prefix", "shown_scopes", *limit, "created_at", "revoked_at")
            if obj
            else ("name", "scopes", *limit)
        )

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        return ("name", "prefix", "shown_scopes", "created_at", "revoked_at") if obj else ()

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Makes the key, or gives one another limit."""
        limit = {name: form.cleaned_data[name] for name in ("rate_per_s", "burst")}
        if change:
            set_limit(obj, **limit)
            return
        issued = issue_key(name=form.cleaned_data["name"], scopes=form.cleaned_data["scopes"], **limit)
        obj.pk, obj.prefix = issued.record.pk, issued.record.prefix
        obj.refresh_from_db()
        self.message_user(
            request, f"The key of {obj.name} is {issued.key} - copy it now, it is shown this once.", messages.WARNING
        )

    @admin.display(description="scopes")
    def shown_scopes(self, record: ApiKey) -> str:
        return ", ".join(record.scopes)

    @admin.display(description="limit")
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
