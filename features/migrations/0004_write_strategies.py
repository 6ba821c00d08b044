from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("features", "0003_no_pattern_index")]
    operations = [
        migrations.AddField(model_name="featuregrouprecord", name="write", field=models.TextField(default="around")),
        migrations.CreateModel(
            name="FlushedBatch",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("flushed_at", models.DateTimeField(db_index=True)),
            ],
        ),
    ]
