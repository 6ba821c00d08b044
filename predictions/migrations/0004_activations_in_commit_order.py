"""The newest activation is the one that was committed last, whichever drew its number first."""

from django.db import migrations

FORWARD = """
CREATE CONSTRAINT TRIGGER predictions_number_in_commit_order AFTER INSERT ON predictions_activation
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION features_number_in_commit_order();
ALTER TABLE predictions_activation ENABLE ALWAYS TRIGGER predictions_number_in_commit_order;
"""

REVERSE = "DROP TRIGGER predictions_number_in_commit_order ON predictions_activation"


class Migration(migrations.Migration):
    dependencies = [
        ("predictions", "0003_on_missing_source"),
        ("features", "0011_numbers_in_commit_order"),
    ]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
