from django.db import migrations

from mlserve.platform.pattern_index import without_pattern_index


class Migration(migrations.Migration):
    dependencies = [("features", "0002_versions")]
    operations = [without_pattern_index("features_transaction")]
