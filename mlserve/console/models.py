"""No table: the permission that opens the cache overview."""

from django.db import models


class CacheOverview(models.Model):
    """Carries the permission `console.view_cacheoverview`; holds no data."""

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "cache overview"
