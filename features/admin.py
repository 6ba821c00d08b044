"""What operators see of features, and the one thing that they set: TTL policies."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import F, FloatField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Abs, Extract
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from features.definitions import GROUPS
from features.models import (
    FeatureGroupRecord,
    FeatureRecord,
    InspectionFinding,
    LabelReport,
    PolicyRevision,
    Transaction,
    TtlPolicy,
)
from features.policies import is_proven
from mlserve.console import units
from mlserve.console.proven import unproven
from mlserve.console.readonly import ReadOnlyAdmin

LONGEST_S = 31_536_000
"""A year: a longer time is a typing error."""
_EDIT_WINDOW = timedelta(seconds=10)
"""A policy's revision and the admin's log entry of it stand in one transaction; clocks may differ by this much."""
_REPORTS_SHOWN = 20
_DURATIONS = {
    "fresh_for_s": "How old a copy's values may be and still count as fresh. 0 reads the source every time.",
    "grace_s": "How much longer a value may serve, flagged stale, while the source cannot be reached.",
    "negative_ttl_s": "How long the cache remembers that the source knows nothing of an id.",
}


class TtlPolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    """Durations in seconds: finite, 0 to a year."""

    class Meta:
        model = TtlPolicy
        fields = ("fresh_for_s", "grace_s", "negative_ttl_s", "freshness", "use_l1", "use_l2", "on_missing")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, meaning in _DURATIONS.items():
            field = self.fields.get(name)
            if field is None:  # somebody who may only look
                continue
            field.validators.extend(
                (
                    MinValueValidator(0, "At least 0 s."),
                    MaxValueValidator(LONGEST_S, f"At most {LONGEST_S:,} s (365 d)."),
                )
            )
            field.widget.attrs.update(min=0, max=LONGEST_S, step="any")
            field.error_messages["invalid"] = "A finite number of seconds, such as 60 or 0.5."
            seconds = getattr(self.instance, name)
            in_force = "" if seconds is None else f" In force now: {units.span(seconds)}."
            field.help_text = f"{meaning} Seconds, 0 to {LONGEST_S:,}.{in_force}"


@admin.register(TtlPolicy)
class TtlPolicyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = TtlPolicyForm
    list_display = (
        "group",
        "entity",
        "cadence",
        "write",
        "fresh_for",
        "grace",
        "negative_ttl",
        "fresh_by",
        "use_l1",
        "use_l2",
        "if_missing",
        "updated",
    )
    readonly_fields = ("group", "entity", "cadence", "write", "description", "updated", "revisions")
    fieldsets = (
        (None, {"fields": ("group", "entity", "cadence", "write", "description")}),
        ("How long copies count", {"fields": ("fresh_for_s", "grace_s", "negative_ttl_s", "freshness")}),
        ("Where copies are kept", {"fields": ("use_l1", "use_l2")}),
        ("Without any value", {"fields": ("on_missing",)}),
        ("History", {"fields": ("updated", "revisions")}),
    )
    actions: Any = ()

    class Media:
        css = {"all": ("console/console.css",)}

    def has_add_permission(self, _request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, _request: HttpRequest, _obj: TtlPolicy | None = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        _warn_of_missing_proof(request, TtlPolicy.objects.all())
        return super().changelist_view(request, extra_context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        _warn_of_missing_proof(request, TtlPolicy.objects.filter(name=object_id))
        return super().change_view(request, object_id, form_url, extra_context)

    def save_model(self, request: HttpRequest, obj: TtlPolicy, form: forms.ModelForm, change: bool) -> None:  # type: ignore[type-arg]
        super().save_model(request, obj, form, change)
        if not form.changed_data:
            return
        messages.info(
            request, f"{obj.name}: in force in every process within a second, for copies that already exist too."
        )
        if is_unwise_in_l1(obj):
            messages.warning(
                request,
                f"{obj.name} is streaming and now kept in L1: other processes do not hear of a write, so they may "
                f"serve values up to {units.span(obj.fresh_for_s)} old as fresh.",
            )

    @admin.display(description="group", ordering="name")
    def group(self, policy: TtlPolicy) -> str:
        return policy.name

    @admin.display
    def entity(self, policy: TtlPolicy) -> str:
        return GROUPS[policy.name].entity if policy.name in GROUPS else units.NOTHING

    @admin.display
    def cadence(self, policy: TtlPolicy) -> str:
        return GROUPS[policy.name].cadence if policy.name in GROUPS else units.NOTHING

    @admin.display(description="written")
    def write(self, policy: TtlPolicy) -> str:
        return GROUPS[policy.name].write if policy.name in GROUPS else units.NOTHING

    @admin.display
    def description(self, policy: TtlPolicy) -> str:
        if policy.name in GROUPS:
            return GROUPS[policy.name].description
        return "Scores by model version and exact input vector."

    @admin.display(description="fresh for", ordering="fresh_for_s")
    def fresh_for(self, policy: TtlPolicy) -> str:
        return units.span(policy.fresh_for_s)

    @admin.display(ordering="grace_s")
    def grace(self, policy: TtlPolicy) -> str:
        return units.span(policy.grace_s)

    @admin.display(description="negative TTL", ordering="negative_ttl_s")
    def negative_ttl(self, policy: TtlPolicy) -> str:
        return units.span(policy.negative_ttl_s)

    @admin.display(description="fresh by", ordering="freshness")
    def fresh_by(self, policy: TtlPolicy) -> str:
        return "proof" if policy.freshness == TtlPolicy.Freshness.PROVEN else "age"

    @admin.display(description="on missing", ordering="on_missing")
    def if_missing(self, policy: TtlPolicy) -> str:
        return "503" if policy.on_missing == TtlPolicy.OnMissing.FAIL else "default, flagged"

    @admin.display(ordering="updated_at")
    def updated(self, policy: TtlPolicy) -> str:
        return f"{policy.updated_at:%Y-%m-%d %H:%M:%S} UTC"

    @admin.display(description="last edits")
    def revisions(self, policy: TtlPolicy) -> SafeString:
        """The last ten, newest first."""
        rows = _with_editor(PolicyRevision.objects.filter(policy=policy.name))[:10]
        return format_html(
            '<table class="inside"><thead><tr><th>Policy version</th><th>Time</th><th>By</th><th>Change</th></tr>'
            "</thead><tbody>{}</tbody></table>",
            format_html_join(
                "",
                '<tr><td class="n">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>',
                ((row.pk, f"{row.at:%Y-%m-%d %H:%M:%S} UTC", _editor(row), change_of(row)) for row in rows),
            ),
        )


@admin.register(PolicyRevision)
class PolicyRevisionAdmin(ReadOnlyAdmin):
    list_display = ("version", "time", "policy", "change", "by")
    list_filter = ("policy",)
    fields = ("version", "time", "policy", "by", "change", "before", "after")

    def get_queryset(self, request: HttpRequest) -> QuerySet[PolicyRevision]:
        return _with_editor(super().get_queryset(request))

    @admin.display(description="policy version", ordering="id")
    def version(self, revision: PolicyRevision) -> int:
        return revision.pk

    @admin.display(ordering="at")
    def time(self, revision: PolicyRevision) -> str:
        return f"{revision.at:%Y-%m-%d %H:%M:%S} UTC"

    @admin.display
    def change(self, revision: PolicyRevision) -> str:
        return change_of(revision)

    @admin.display
    def by(self, revision: PolicyRevision) -> str:
        return _editor(revision)


@admin.register(InspectionFinding)
class InspectionFindingAdmin(ReadOnlyAdmin):
    """Wrong copies that the inspector has found and deleted."""

    empty_hint = "No wrong copy has been found. Whether anything was inspected stands in the cache overview."

    list_display = (
        "time",
        "group",
        "entity_id",
        "tier",
        "place",
        "cause",
        "horizon_s",
        "held_version",
        "written_version",
        "switched_off",
    )
    list_filter = ("cause", "tier", "group", "switched_off")
    search_fields = ("entity_id__exact",)
    search_help_text = "The whole id of a customer or a merchant."

    @admin.display(ordering="at")
    def time(self, finding: InspectionFinding) -> str:
        return f"{finding.at:%Y-%m-%d %H:%M:%S} UTC"


@admin.register(Transaction)
class TransactionAdmin(ReadOnlyAdmin):
    list_display = ("id", "occurred", "customer_id", "merchant_id", "amount_shown", "currency", "label")
    fields = ("id", "occurred", "customer_id", "merchant_id", "amount_shown", "currency", "label", "reports")
    list_filter = ("is_fraud", "occurred_at")
    # Exact only: each has an index, and a part of an id would read the whole ledger.
    search_fields = ("id__exact", "customer_id__exact", "merchant_id__exact")
    search_help_text = "The whole id of a transaction, a customer or a merchant."
    empty_hint = "An empty ledger: manage.py import_transactions, simulate_transactions and POST /v1/scores fill it."
    ordering = ("-occurred_at",)

    class Media:
        css = {"all": ("console/console.css",)}

    def get_fields(self, request: HttpRequest, obj: Transaction | None = None) -> tuple[str, ...]:
        """Reports are shown to those only who may view them."""
        return self.fields if request.user.has_perm("features.view_labelreport") else self.fields[:-1]

    @admin.display(ordering="occurred_at")
    def occurred(self, transaction: Transaction) -> str:
        return f"{transaction.occurred_at:%Y-%m-%d %H:%M:%S} UTC"

    @admin.display(description="amount", ordering="amount")
    def amount_shown(self, transaction: Transaction) -> str:
        """Cents, and more decimals where there are any."""
        whole, _, decimals = f"{transaction.amount:,f}".partition(".")
        return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"

    @admin.display(ordering="is_fraud")
    def label(self, transaction: Transaction) -> str:
        return in_words(transaction.is_fraud)

    @admin.display(description="reports of its label")
    def reports(self, transaction: Transaction) -> SafeString | str:
        return _reports_of(transaction.pk)


@admin.register(LabelReport)
class LabelReportAdmin(ReadOnlyAdmin):
    list_display = ("transaction_id", "label", "label_before", "effect", "reported", "recorded", "client")
    fields = (
        "transaction",
        "label",
        "label_before",
        "effect",
        "reported",
        "recorded",
        "client",
        "report_id",
        "reports",
    )
    list_filter = ("is_fraud", "applied", "recorded_at")
    search_fields = ("transaction_id__exact",)
    search_help_text = "The whole id of a transaction."
    empty_hint = "No label has been reported: POST /v1/labels, with a key of the scope label, does it."

    class Media:
        css = {"all": ("console/console.css",)}

    @admin.display
    def transaction(self, report: LabelReport) -> SafeString:
        address = reverse("admin:features_transaction_change", args=[quote(report.transaction_id)])
        return format_html('<a href="{}">{}</a>', address, report.transaction_id)

    @admin.display(ordering="is_fraud")
    def label(self, report: LabelReport) -> str:
        return in_words(report.is_fraud)

    @admin.display(description="before", ordering="was")
    def label_before(self, report: LabelReport) -> str:
        return in_words(report.was)

    @admin.display(ordering="applied")
    def effect(self, report: LabelReport) -> str:
        return _effect(report)

    @admin.display(description="all reports of this transaction")
    def reports(self, report: LabelReport) -> SafeString | str:
        return _reports_of(report.transaction_id)

    @admin.display(description="reported at", ordering="reported_at")
    def reported(self, report: LabelReport) -> str:
        return f"{report.reported_at:%Y-%m-%d %H:%M:%S} UTC"

    @admin.display(description="recorded at", ordering="recorded_at")
    def recorded(self, report: LabelReport) -> str:
        return f"{report.recorded_at:%Y-%m-%d %H:%M:%S} UTC"


@admin.register(FeatureGroupRecord)
class FeatureGroupAdmin(ReadOnlyAdmin):
    list_display = ("name", "entity", "cadence", "write", "schema", "description")
    ordering = ("name",)
    list_filter = ("entity", "cadence", "write")


@admin.register(FeatureRecord)
class FeatureAdmin(ReadOnlyAdmin):
    list_display = ("name", "type", "unit", "default", "derived_from", "description")
    search_fields = ("name", "description")
    search_help_text = "A part of a name or of a description."
    ordering = ("name",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[FeatureRecord]:
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description="derived from")
    def derived_from(self, feature: FeatureRecord) -> str:
        return ", ".join(group.name for group in feature.groups.all()) or "the request alone"


def _warn_of_missing_proof(request: HttpRequest, policies: Iterable[TtlPolicy]) -> None:
    """On the page that is about to be shown; whoever posts a form gets another one next."""
    if request.method != "GET":
        return
    proven = [policy.name for policy in policies if is_proven(policy)]
    warning = unproven(proven, now=timezone.now().timestamp())
    if warning:
        messages.warning(request, warning)


def is_unwise_in_l1(policy: TtlPolicy) -> bool:
    """Whether L1 holds what is written at every transaction, and serves it by age alone."""
    return (
        policy.use_l1
        and policy.freshness == TtlPolicy.Freshness.TTL
        and policy.name in GROUPS
        and GROUPS[policy.name].cadence == "streaming"
    )


def change_of(revision: PolicyRevision) -> str:
    """What an edit changed: `fresh_for_s 60.0 → 30.0`."""
    before, after = revision.before, revision.after
    if before is None:
        return "created"
    changed = [name for name in after if before.get(name) != after[name]]
    return ", ".join(f"{name} {before.get(name)} \N{RIGHTWARDS ARROW} {after[name]}" for name in changed) or "nothing"


def in_words(is_fraud: bool | None) -> str:
    """A label; a tick would be green for fraud."""
    return {True: "fraud", False: "genuine", None: "not known"}[is_fraud]


def _effect(report: LabelReport) -> str:
    if report.applied:
        return "came into force"
    return "confirmed the one in force" if report.is_fraud == report.was else "older than the one in force"


def _reports_of(transaction_id: str) -> SafeString | str:
    """Newest first, at most `_REPORTS_SHOWN`."""
    reports = LabelReport.objects.filter(transaction_id=transaction_id)[: _REPORTS_SHOWN + 1]
    if not reports:
        return "none"
    rows = (
        (
            in_words(report.is_fraud),
            f"{report.reported_at:%Y-%m-%d %H:%M:%S} UTC",
            f"{report.recorded_at:%Y-%m-%d %H:%M:%S} UTC",
            report.client,
            _effect(report),
        )
        for report in reports[:_REPORTS_SHOWN]
    )
    return format_html(
        '<table class="inside"><thead><tr><th>Label</th><th>Reported at</th><th>Recorded at</th><th>Client</th>'
        "<th>Effect</th></tr></thead><tbody>{}</tbody></table>{}",
        format_html_join("", "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>", rows),
        f"and older ones; the newest {_REPORTS_SHOWN} are shown" if len(reports) > _REPORTS_SHOWN else "",
    )


def _with_editor(revisions: QuerySet[PolicyRevision]) -> QuerySet[PolicyRevision]:
    """Adds `editor`: the user whose entry in the admin's log is nearest in time; None for edits by other ways."""
    distance = Abs(Extract(F("action_time") - OuterRef("at"), "epoch"), output_field=FloatField())
    entries = (
        LogEntry.objects.filter(
            content_type__app_label="features",
            content_type__model="ttlpolicy",
            object_id=OuterRef("policy"),
            action_time__gte=OuterRef("at") - _EDIT_WINDOW,
            action_time__lte=OuterRef("at") + _EDIT_WINDOW,
        )
        .annotate(distance=distance)
        .order_by("distance")
    )
    return revisions.annotate(editor=Subquery(entries.values("user__username")[:1]))


def _editor(revision: PolicyRevision) -> str:
    return getattr(revision, "editor", None) or "not in the admin"
