"""What operators see of models and decisions, and set: which version serves, and what it does without a source."""

import json
from typing import ClassVar

import msgspec
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Func, Model, QuerySet, TextField, Value
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from mlserve.console import units
from mlserve.console.readonly import ReadOnlyAdmin
from mlserve.errors import MlserveError
from predictions import stored
from predictions.evaluation import evaluate_model
from predictions.messages import ScoreResponse
from predictions.models import Activation, Decision, ModelArtifact, ModelVersion
from predictions.registry.active import check_version
from predictions.registry.artifact import ArtifactRefused
from predictions.registry.gate import QualityRefused, newest_comparison, objections_to, promote
from predictions.version_tables import compared, number, pairs, table

_METRICS = (
    "auc_roc",
    "average_precision",
    "card_precision_at_100",
    "flagged_share",
    "declined_share",
    "decline_precision",
    "recall",
    "brier",
)


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnlyAdmin):
    list_display = (
        "label",
        "serving",
        "estimator",
        "auc_roc",
        "average_precision",
        "card_precision",
        "onnx_difference",
        "short_thresholds",
        "flagged",
        "created",
    )
    actions = ("activate_version",)
    change_form_template = None  # it has a history: of its rule and of its activations
    empty_hint = "No model yet: manage.py train makes one."
    readonly_fields = (
        "label",
        "serving",
        "estimator",
        "created",
        "digest",
        "thresholds",
        "metrics_table",
        "comparisons_table",
        "online_table",
        "parity_table",
        "training_table",
        "features_table",
    )
    fields = ("on_missing_source", *readonly_fields)
    radio_fields: ClassVar = {"on_missing_source": admin.VERTICAL}

    class Media:
        css = {"all": ("console/console.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelVersion]:
        self._serving_id = Activation.objects.values_list("model_version_id", flat=True).first()
        return super().get_queryset(request)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Only `on_missing_source` can be changed: all other fields are shown, not asked for."""
        return request.user.has_perm("predictions.change_modelversion")

    def save_model(self, request: HttpRequest, obj: ModelVersion, form: ModelForm, change: bool) -> None:  # type: ignore[type-arg]
        obj.save(update_fields=["on_missing_source"])
        if form.changed_data:
            self.message_user(request, f"Model {obj}: in force in every process within a second.", messages.INFO)

    def has_activate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("predictions.add_activation")

    @admin.action(description="Activate the chosen model version", permissions=["activate"])
    def activate_version(self, request: HttpRequest, chosen: QuerySet[ModelVersion]) -> HttpResponse | None:
        """Asks first; then the version serves in every process within a second."""
        version = chosen.first()
        if version is None or chosen.count() != 1:
            self.message_user(request, "Choose exactly one model version: only one serves.", messages.ERROR)
            return None
        if "confirmed" not in request.POST:
            return self._ask(request, version)
        if not self.has_activate_permission(request):
            raise PermissionDenied
        reason, force = request.POST.get("reason", "").strip()[:500], request.POST.get("force") == "yes"
        if force and not reason:
            self.message_user(request, "To force a model version give a reason: it is kept.", messages.ERROR)
            return self._ask(request, version)
        try:
            promote(version, reason=f"{request.user.get_username()}: {reason or 'in the admin'}", force=force)
        except QualityRefused as refused:
            self.message_user(request, f"Model {version} was not activated.", messages.ERROR)
            return self._ask(request, version, reason=reason, objections=refused.objections)
        except MlserveError as error:
            self.message_user(request, f"Model {version} was not activated: {error}", messages.ERROR)
            return None
        self.log_change(request, version, f"Activated. {reason}".strip())
        self.message_user(request, f"Model {version} serves in every process within a second.", messages.SUCCESS)
        return None

    def _ask(
        self, request: HttpRequest, version: ModelVersion, *, reason: str = "", objections: list[str] | None = None
    ) -> TemplateResponse:
        comparison = newest_comparison(version)
        serving = Activation.objects.select_related("model_version").first()
        context = {
            **self.admin_site.each_context(request),
            "title": f"Activate {version}?",
            "version": version,
            "serving": serving.model_version if serving else None,
            "rows": [
                (name, version.metrics.get(name), serving and serving.model_version.metrics.get(name))
                for name in _METRICS
            ],
            "reason": reason,
            "objections": objections_to(version) if objections is None else objections,
            "comparison": compared(comparison.report) if comparison is not None else None,
            "opts": self.opts,
        }
        return TemplateResponse(request, "predictions/activate.html", context)

    @admin.display(description="version", ordering="id")
    def label(self, version: ModelVersion) -> str:
        return str(version)

    @admin.display(description="state")
    def serving(self, version: ModelVersion) -> SafeString | str:
        if version.pk != self._serving_id:
            return "not active"
        try:
            check_version(version)
        except ArtifactRefused as refused:
            return format_html('<span class="badge warn">active, but refused: {}</span>', refused.detail)
        if _is_stored_whole(version):
            return format_html('<span class="badge">{}</span>', "active")
        return format_html('<span class="badge warn">{}</span>', "active, but its artifact was changed: refused")

    @admin.display(description="AUC ROC")
    def auc_roc(self, version: ModelVersion) -> str:
        return number(version.metrics.get("auc_roc"))

    @admin.display(description="AP")
    def average_precision(self, version: ModelVersion) -> str:
        return number(version.metrics.get("average_precision"))

    @admin.display(description="card@100")
    def card_precision(self, version: ModelVersion) -> str:
        return number(version.metrics.get("card_precision_at_100"))

    @admin.display(description="ONNX diff.")
    def onnx_difference(self, version: ModelVersion) -> str:
        largest = version.parity.get("max_difference")
        return f"{largest:.1e}" if isinstance(largest, float | int) else units.NOTHING

    @admin.display(description="review, decline")
    def short_thresholds(self, version: ModelVersion) -> str:
        return f"{version.review_from:.4f}, {version.decline_from:.4f}"

    @admin.display(description="flagged, decline precision")
    def flagged(self, version: ModelVersion) -> str:
        """On the test days."""
        share, precision = (version.metrics.get(name) for name in ("flagged_share", "decline_precision"))
        shown = f"{share:.2%}" if isinstance(share, float | int) else units.NOTHING
        return f"{shown}, {number(precision)}"

    @admin.display(description="beside what served")
    def comparisons_table(self, version: ModelVersion) -> SafeString | str:
        newest = version.comparisons.select_related("champion").first()
        if newest is None:
            return f"Not compared yet: manage.py model compare {version.version} --name {version.name}"
        return compared(newest.report)

    @admin.display
    def thresholds(self, version: ModelVersion) -> str:
        return f"review from {version.review_from:.4f}, decline from {version.decline_from:.4f}"

    @admin.display(ordering="created_at")
    def created(self, version: ModelVersion) -> str:
        return f"{version.created_at:%Y-%m-%d %H:%M} UTC"

    @admin.display(description="metrics")
    def metrics_table(self, version: ModelVersion) -> SafeString:
        return pairs(dict(sorted(version.metrics.items())))

    @admin.display(description="online, by day")
    def online_table(self, version: ModelVersion) -> SafeString | str:
        """What became of its decisions of the last 30 days."""
        evaluation = evaluate_model(version, now=timezone.now())
        if not evaluation.total.decisions:
            return f"No decisions in the last {evaluation.days} days."
        if not evaluation.total.labelled:
            return f"Decisions in the last {evaluation.days} days: {evaluation.total.decisions}, none of them labelled."
        return table(
            ("Day", "Decisions", "Labelled", "Fraud", "Precision", "Recall", "AUC", ""),
            (
                (
                    f"{one.day:%Y-%m-%d}" if one.day else "all",
                    *(units.count(count) for count in (one.decisions, one.labelled, one.frauds)),
                    *(number(value) for value in (one.precision, one.recall, one.auc_roc)),
                    "" if one.mature else "labels still to come",
                )
                for one in (*reversed(evaluation.by_day), evaluation.total)
            ),
            numbers={1, 2, 3, 4, 5, 6},
        )

    @admin.display(description="parity")
    def parity_table(self, version: ModelVersion) -> SafeString:
        return pairs(dict(sorted(version.parity.items())))

    @admin.display(description="training")
    def training_table(self, version: ModelVersion) -> SafeString:
        return pairs(dict(sorted(version.training.items())))

    @admin.display(description="features, with their median in training")
    def features_table(self, version: ModelVersion) -> SafeString:
        return pairs(dict(zip(version.feature_names, version.feature_baseline, strict=False)))


@admin.register(Activation)
class ActivationAdmin(ReadOnlyAdmin):
    list_display = ("id", "model_version", "time", "reason", "overruled", "restores")
    list_select_related = ("model_version",)
    empty_hint = "No model has been activated yet: manage.py train does it, or the list of model versions."

    @admin.display(ordering="at")
    def time(self, activation: Activation) -> str:
        return f"{activation.at:%Y-%m-%d %H:%M:%S} UTC"


@admin.register(Decision)
class DecisionAdmin(ReadOnlyAdmin):
    list_display = ("transaction_id", "decided", "decision", "score_shown", "health", "model_version", "client")
    list_filter = ("decision", "degraded", "cold_start", "decided_at")
    list_select_related = ("model_version",)
    search_fields = ("transaction_id__exact",)
    search_help_text = "The whole id of a transaction."
    empty_hint = "No decision yet: POST /v1/scores makes them."
    ordering = ("-decided_at",)
    fields = (
        "transaction_id",
        "decided",
        "decision",
        "score_shown",
        "health",
        "degraded_reasons",
        "reasons",
        "served_features",
        "tiers",
        "model_version",
        "policy_version",
        "client",
        "stored_response",
    )

    class Media:
        css = {"all": ("console/console.css",)}

    @admin.display(description="decided at", ordering="decided_at")
    def decided(self, decision: Decision) -> str:
        return f"{decision.decided_at:%Y-%m-%d %H:%M:%S} UTC"

    @admin.display(description="score", ordering="score")
    def score_shown(self, decision: Decision) -> str:
        return f"{decision.score:.4f}"

    @admin.display(description="health", ordering="degraded")
    def health(self, decision: Decision) -> SafeString | str:
        if decision.degraded:
            return format_html('<span class="badge warn">{}</span>', "degraded")
        return "cold start" if decision.cold_start else "whole"

    @admin.display(description="degraded because")
    def degraded_reasons(self, decision: Decision) -> str:
        response = _response_of(decision)
        return ", ".join(response.degraded_reasons) if response and response.degraded_reasons else units.NOTHING

    @admin.display
    def reasons(self, decision: Decision) -> SafeString | str:
        response = _response_of(decision)
        if response is None or not response.reasons:
            return units.NOTHING
        return table(("Effect", "Reason"), ((f"{one.effect:+.4f}", one.text) for one in response.reasons), numbers={0})

    @admin.display(description="features")
    def served_features(self, decision: Decision) -> SafeString | str:
        response = _response_of(decision)
        if response is None or not response.features:
            return units.NOTHING
        return table(
            ("Feature", "Value", "Tier", "Age", "Limit", "As of", ""),
            (
                (
                    one.name,
                    f"{one.value:,.6g}",
                    one.tier,
                    units.span(one.age_s),
                    units.span(one.max_age_s),
                    f"{one.as_of:%Y-%m-%d %H:%M:%S} UTC" if one.as_of else units.NOTHING,
                    "stale" if one.stale else "",
                )
                for one in response.features
            ),
            numbers={1, 3, 4},
        )

    @admin.display
    def tiers(self, decision: Decision) -> SafeString | str:
        response = _response_of(decision)
        if response is None or not response.trace:
            return units.NOTHING
        rows = ((one.tier, one.asked, one.hit, units.latency(one.ms / 1000)) for one in response.trace)
        return table(("Tier", "Asked", "Answered", "Time"), rows, numbers={1, 2, 3})

    @admin.display(description="response")
    def stored_response(self, decision: Decision) -> SafeString | str:
        try:
            text = json.dumps(json.loads(stored.unpack(decision.response)), indent=2, ensure_ascii=False)
        except (ValueError, stored.AnswerUnreadable):
            return "not readable"
        return format_html('<details><summary>JSON</summary><pre class="json">{}</pre></details>', text)


def _response_of(decision: Decision) -> ScoreResponse | None:
    """None if what lies there is not a response of this version of the code."""
    try:
        return msgspec.json.decode(stored.unpack(decision.response), type=ScoreResponse)
    except (stored.AnswerUnreadable, msgspec.MsgspecError):
        return None


def _is_stored_whole(version: ModelVersion) -> bool:
    """Whether the stored artifact still has the digest that was registered. PostgreSQL compares: it may be large."""
    stored = ModelArtifact.objects.filter(pk=version.pk).annotate(
        digest=Func(Func("onnx", function="sha256"), Value("hex"), function="encode", output_field=TextField())
    )
    return version.digest in stored.values_list("digest", flat=True)
