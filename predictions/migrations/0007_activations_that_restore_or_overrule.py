"""A rollback says which activation it restores; what an activation overruled, and what was compared, is kept."""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("predictions", "0006_cold_start"),
    ]

    operations = [
        migrations.AddField(
            model_name="activation",
            name="restores",
            field=models.BigIntegerField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="activation",
            name="overruled",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
        migrations.CreateModel(
            name="Comparison",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ("report", models.JSONField()),
                (
                    "candidate",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="comparisons",
                        to="predictions.modelversion",
                    ),
                ),
                (
                    "champion",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="predictions.modelversion",
                    ),
                ),
            ],
            options={"ordering": ("-id",)},
        ),
    ]
