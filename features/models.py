"""What Postgres knows: the ledger, one row per feature group and entity, and the policies of the cache."""

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models.functions import Now


class Transaction(models.Model):
    """The ledger. Features derive from it; rows are never changed but for their label."""

    id = models.TextField(primary_key=True)
    """The client's transaction id: up to 64 characters."""
    occurred_at = models.DateTimeField()
    customer_id = models.TextField()
    merchant_id = models.TextField()
    amount = models.DecimalField(max_digits=18, decimal_places=4)
    currency = models.CharField(max_length=3, db_default="EUR")
    is_fraud = models.BooleanField(null=True)
    """None until somebody has said."""
    recorded_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        indexes = (
            models.Index(fields=["customer_id", "occurred_at"], include=["amount"], name="ledger_customer"),
            models.Index(fields=["merchant_id", "occurred_at"], include=["is_fraud"], name="ledger_merchant"),
            models.Index(fields=["occurred_at"], name="ledger_time"),
        )

    def __str__(self) -> str:
        return self.id


class LabelReport(models.Model):
    """Who said when what became of a transaction. The ledger has the label in force; this is how it came about."""

    transaction_id = models.TextField()
    is_fraud = models.BooleanField()
    reported_at = models.DateTimeField()
    """When the reporter says it was known. Of two reports the newer one by this moment is in force."""
    recorded_at = models.DateTimeField()
    """When this service learnt it: before, no feature may know."""
    client = models.TextField()
    """The API key's prefix."""
    applied = models.BooleanField()
    """Whether it came into force; one that is older than the report in force does not."""
    was = models.BooleanField(null=True)
    """The label that was in force before."""
    report_id = models.TextField("report id", db_default="", blank=True)
    """The reporter's own name for the report; empty without one. Under one of them a transaction has one report."""
    digest = models.BinaryField(null=True)
    """Of what was sent: tells a repetition from a new report. Null in reports of releases before."""

    class Meta:
        indexes = (models.Index(fields=["transaction_id", "id"], name="label_report_transaction"),)
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.transaction_id}: {'fraud' if self.is_fraud else 'genuine'}"


class FeatureRow(models.Model):
    """What the source knows of one entity in one feature group.

    `version` is drawn by a trigger from a global sequence under the row's lock (migration 0002), so that every way of
    writing gets one and later commits of a row have larger ones. Rows are only ever deleted softly.
    """

    pk = models.CompositePrimaryKey("group", "entity_id")
    group = models.TextField()
    entity_id = models.TextField()
    values = ArrayField(models.FloatField())
    version = models.BigIntegerField(editable=False, db_default=0)
    as_of = models.DateTimeField()
    """When the source computed the values (wall clock, not the moment of the data)."""
    deleted_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.group} of {self.entity_id}"


class OutdatedFeature(models.Model):
    """The ledger has changed since this group of this entity was derived from it; written by triggers of the ledger.

    An entity may have many lines. Reads of it are flagged until they are gone (`catch_up.py`).
    """

    group = models.TextField()
    entity_id = models.TextField()
    at = models.DateTimeField()
    """When the transaction began that changed the ledger: up to then the row was true."""

    class Meta:
        indexes = (models.Index(fields=["group", "entity_id"], include=["at"], name="outdated_feature"),)

    def __str__(self) -> str:
        return f"{self.group} of {self.entity_id}"


class FlushedBatch(models.Model):
    """A batch of a group that is written behind is in its rows already. Kept for a day (`flush.py`)."""

    id = models.UUIDField(primary_key=True)
    flushed_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return str(self.id)


class FeatureGroupRecord(models.Model):
    """`definitions.py` as a table, written on migrate, for those who look from the database's side."""

    name = models.TextField(primary_key=True)
    entity = models.TextField()
    cadence = models.TextField()
    schema = models.PositiveIntegerField()
    write = models.TextField(default="around")
    description = models.TextField()

    def __str__(self) -> str:
        return self.name


class FeatureRecord(models.Model):
    """A model feature of `definitions.py`, written on migrate."""

    name = models.TextField(primary_key=True)
    type = models.TextField(default="float")
    unit = models.TextField(blank=True)
    default = models.FloatField()
    description = models.TextField()
    groups = models.ManyToManyField(FeatureGroupRecord)

    def __str__(self) -> str:
        return self.name


class InspectionMark(models.Model):
    """A snapshot of Postgres, and a moment after it was taken. Kept for as long as the longest horizon."""

    at = models.DateTimeField(primary_key=True)
    snapshot = models.TextField()

    def __str__(self) -> str:
        return f"{self.at}"


class InspectionCursor(models.Model):
    """Up to which snapshot the inspector has looked at lines of the journal of that age (`features/inspection`)."""

    horizon_s = models.PositiveIntegerField(primary_key=True)
    snapshot = models.TextField()
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.horizon_s} s"


class InspectionCount(models.Model):
    """What the inspector has looked at on a day (UTC), and how much of it was wrong, by cause."""

    day = models.DateField()
    horizon_s = models.PositiveIntegerField()
    tier = models.TextField()
    """`l1`, `l2`; or `all`: writes, which count once whatever the number of their copies."""
    checked = models.BigIntegerField()
    age_sum_s = models.FloatField()
    """Of the writes, since their transactions began."""
    late = models.BigIntegerField()
    lost_invalidation = models.BigIntegerField()
    wrong_bytes = models.BigIntegerField()
    unknown = models.BigIntegerField()

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["day", "horizon_s", "tier"], name="inspection_count_of_a_day_once"),
        )

    def __str__(self) -> str:
        return f"{self.day}, {self.horizon_s} s, {self.tier}"


class InspectionFinding(models.Model):
    """A copy that would have been served and was not what Postgres says. It has been deleted since."""

    at = models.DateTimeField(db_index=True)
    group = models.TextField()
    entity_id = models.TextField()
    tier = models.TextField()
    place = models.TextField(blank=True)
    """The process of an L1; the number of a copy of a hot entity in L2."""
    horizon_s = models.PositiveIntegerField("horizon (s)")
    age_s = models.FloatField("age (s)")
    """So long ago, at least, the write was committed."""
    cause = models.TextField()
    held_version = models.BigIntegerField()
    written_version = models.BigIntegerField()
    switched_off = models.BooleanField()
    """L1 and L2 were then taken out of the group's policy."""

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.cause}: {self.group} of {self.entity_id}"


class TtlPolicy(models.Model):
    """How long copies of one feature group (or of predictions) count as fresh. Every process obeys within a second."""

    class OnMissing(models.TextChoices):
        DEFAULT = "default", "score with the default value, flagged"
        FAIL = "fail", "refuse the score (503)"

    class Freshness(models.TextChoices):
        TTL = "ttl", "by age alone"
        PROVEN = "proven", "proven: never older than the bound, unflagged"

    name = models.TextField(primary_key=True, editable=False)
    """A feature group, or `prediction`."""
    fresh_for_s = models.FloatField("fresh for (s)", validators=[MinValueValidator(0)])
    grace_s = models.FloatField(
        "grace (s)",
        validators=[MinValueValidator(0)],
        help_text="How much longer a value may serve, flagged stale, while the source cannot be reached.",
    )
    negative_ttl_s = models.FloatField(
        "negative TTL (s)",
        validators=[MinValueValidator(0)],
        help_text="How long the cache remembers that the source knows nothing of an id.",
    )
    freshness = models.TextField(
        choices=Freshness.choices,
        default=Freshness.TTL,
        help_text="Proven: copies serve only while a relay (manage.py relay) vouches for them; else Postgres is read.",
    )
    use_l1 = models.BooleanField("use L1", default=True)
    use_l2 = models.BooleanField("use L2", default=True)
    on_missing = models.TextField(choices=OnMissing.choices, default=OnMissing.DEFAULT)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "TTL policy"
        verbose_name_plural = "TTL policies"
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class PolicyRevision(models.Model):
    """Every edit of a policy; the newest id is the policy version that each score names. Written by a trigger."""

    at = models.DateTimeField(db_default=Now())
    policy = models.TextField()
    before = models.JSONField(null=True)
    after = models.JSONField()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.id}: {self.policy}"
