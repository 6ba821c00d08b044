from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("features", "0008_journal_packs"),
    ]

    operations = [
        migrations.CreateModel(
            name="LabelReport",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("transaction_id", models.TextField()),
                ("is_fraud", models.BooleanField()),
                ("reported_at", models.DateTimeField()),
                ("recorded_at", models.DateTimeField()),
                ("client", models.TextField()),
                ("applied", models.BooleanField()),
                ("was", models.BooleanField(null=True)),
            ],
            options={
                "ordering": ("-id",),
                "indexes": [models.Index(fields=["transaction_id", "id"], name="label_report_transaction")],
            },
        ),
    ]
