"""Model versions and the decisions that they gave."""

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now

from predictions.missing import OnMissingSource


class ModelVersion(models.Model):
    """A trained model. Never changed after registration but in `on_missing_source`; which one serves is `Activation`'s
    matter."""

    name = models.TextField(default="fraud")
    version = models.PositiveIntegerField()
    estimator = models.TextField()
    feature_names = ArrayField(models.TextField())
    """The input vector, in this order."""
    feature_baseline = ArrayField(models.FloatField())
    """Median of each feature over the training rows: what reasons compare with."""
    review_from = models.FloatField()
    decline_from = models.FloatField()
    digest = models.CharField(max_length=64)
    """SHA-256 of the ONNX artifact, in hex; checked before it is loaded."""
    metrics = models.JSONField()
    training = models.JSONField()
    """Data span, seed, rows, library versions: what is needed to train it again."""
    parity = models.JSONField()
    """Largest difference between ONNX and scikit-learn, decisions that differed, rows compared."""
    on_missing_source = models.TextField(
        "on a missing source",
        default=OnMissingSource.FOLLOW.value,
        choices=[
            (OnMissingSource.FOLLOW.value, "as the policy of each feature group says"),
            (OnMissingSource.DEFAULT.value, "score with defaults, flagged"),
            (OnMissingSource.FAIL.value, "refuse the score: 503"),
        ],
        help_text="Of a feature group that neither the cache nor PostgreSQL can supply.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["name", "version"], name="model_version_unique"),
            models.CheckConstraint(
                condition=models.Q(on_missing_source__in=[rule.value for rule in OnMissingSource]),
                name="model_version_on_missing_source",
            ),
        )
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class ModelArtifact(models.Model):
    """The bytes, in Postgres, so that every host that serves has them."""

    model_version = models.OneToOneField(
        ModelVersion, on_delete=models.CASCADE, primary_key=True, related_name="artifact"
    )
    onnx = models.BinaryField()
    skops = models.BinaryField()

    def __str__(self) -> str:
        return f"artifact of {self.model_version_id}"


class Activation(models.Model):
    """The newest row says which model version serves; a rollback is a new row."""

    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT)
    at = models.DateTimeField(db_default=Now(), editable=False)
    reason = models.TextField(blank=True)
    overruled = models.TextField(blank=True, default="", db_default="")
    """What spoke against it, where somebody forced it."""
    restores = models.BigIntegerField(null=True, editable=False)
    """Of a rollback: the number of the earlier activation that holds again. Those between the two were taken back. No
    foreign key: activations that commit out of turn are numbered anew."""

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.id}: {self.model_version}"


class Comparison(models.Model):
    """Two model versions on the same transactions (`registry/comparison.py`)."""

    candidate = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="comparisons")
    champion = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="+")
    """What served when they were compared."""
    at = models.DateTimeField(db_default=Now(), editable=False)
    report = models.JSONField()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.candidate} beside {self.champion}"


class Decision(models.Model):
    """The journal: every decision that was acknowledged, with the provenance that it was given with."""

    transaction_id = models.TextField(primary_key=True)
    client = models.TextField()
    """The API key's prefix, or `command`."""
    request_digest = models.BinaryField()
    """SHA-256 of the canonical request: tells a repetition from a conflict."""
    model_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT)
    policy_version = models.BigIntegerField()
    score = models.FloatField()
    decision = models.TextField()
    degraded = models.BooleanField()
    """The system could not say what it should have."""
    cold_start = models.BooleanField("cold start", db_default=False)
    """It could, and in some feature group nothing was known of the customer or the merchant yet."""
    response = models.BinaryField()
    """The whole response with features and trace, as JSON bytes."""
    decided_at = models.DateTimeField()

    class Meta:
        indexes = (models.Index(fields=["-decided_at"], name="decision_time"),)

    def __str__(self) -> str:
        return f"{self.transaction_id}: {self.decision}"


class SkewCheck(models.Model):
    """A sample of decisions was compared with what training has of the same transactions (`skew.py`). Kept 90 days."""

    at = models.DateTimeField(db_index=True)
    sampled = models.BigIntegerField()
    """Decisions."""
    compared = models.BigIntegerField()
    """Values of features, as the next one."""
    differing = models.BigIntegerField()
    """Without a known reason."""
    report = models.JSONField()
    """By feature, with examples."""

    class Meta:
        ordering = ("-at", "-id")

    def __str__(self) -> str:
        return f"{self.at}: {self.differing} of {self.compared} values differ"
