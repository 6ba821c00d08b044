"""Who may call the API."""

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from mlserve.api.limit import MOST_PER_S


class ApiKey(models.Model):
    """A bearer key. Only its SHA-256 is stored: the key has 256 random bits, so a slow hash would add nothing."""

    class Scope(models.TextChoices):
        SCORE = "score", "score transactions"
        LABEL = "label", "report fraud"
        DEBUG = "debug", "look at features"
        OPERATE = "operate", "change the cache"

    name = models.TextField(help_text="Who uses it.")
    prefix = models.CharField(max_length=12, unique=True, editable=False)
    """The key's first characters, to recognise it by."""
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = ArrayField(models.TextField(choices=Scope.choices))
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)
    rate_per_s = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MaxValueValidator(MOST_PER_S)],
        verbose_name="requests a second",
        help_text="Sustained. Empty: as the settings say; 0: as many as it likes.",
    )
    burst = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(MOST_PER_S)],
        verbose_name="at once",
        help_text="After a pause. Empty: as many as in one second.",
    )

    class Meta:
        verbose_name = "API key"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
