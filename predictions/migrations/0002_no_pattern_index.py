from django.db import migrations

from mlserve.platform.pattern_index import without_pattern_index


class Migration(migrations.Migration):
    dependencies = [("predictions", "0001_initial")]
    operations = [without_pattern_index("predictions_decision")]
