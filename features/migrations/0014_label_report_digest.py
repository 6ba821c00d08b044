"""Reports are recognised when they come again, also those that say no moment."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("features", "0013_outdated"),
    ]

    operations = [
        migrations.AddField("labelreport", "report_id", models.TextField("report id", blank=True, db_default="")),
        migrations.AddField("labelreport", "digest", models.BinaryField(null=True)),
    ]
