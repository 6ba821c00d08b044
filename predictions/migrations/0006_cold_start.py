"""Decisions on those of whom nothing is known yet are told apart from those that were degraded."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("predictions", "0005_skew_checks"),
    ]

    operations = [
        migrations.AddField("decision", "cold_start", models.BooleanField("cold start", db_default=False)),
    ]
