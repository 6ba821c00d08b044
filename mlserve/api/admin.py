"""API keys in the admin: made, looked at and revoked; never changed, never shown again."""

from datetime import UTC, datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from mlserve.api.keys import NAME_CHARACTERS_MAX, issue_key, revoke_key
from mlserve.api.models import ApiKey


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """What a new key needs: a name and scopes."""

    name = forms.CharField(max_length=NAME_CHARACTERS_MAX, help_text="Who uses it.")
    scopes = forms.MultipleChoiceField(choices=ApiKey.Scope.choices, widget=forms.CheckboxSelectMultiple)

    class Meta:
        model = ApiKey
        fields = ("name", "scopes")


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The key stands in the message after saving, once."""

    form = ApiKeyForm
    list_display = ("name", "prefix", "shown_scopes", "created_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    search_fields = ("name", "prefix")
    actions = ("revoke",)

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Makes the key; a change never comes here, because nobody has the permission."""
        issued = issue_key(name=form.cleaned_data["name"], scopes=form.cleaned_data["scopes"])
        obj.pk, obj.prefix = issued.record.pk, issued.record.prefix
        obj.refresh_from_db()
        self.message_user(
            request, f"The key of {obj.name} is {issued.key} - copy it now, it is shown this once.", messages.WARNING
        )

    @admin.display(description="scopes")
    def shown_scopes(self, record: ApiKey) -> str:
        return ", ".join(record.scopes)

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

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False
