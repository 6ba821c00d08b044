"""Without the second index that Django gives every text key for LIKE.

Nobody searches ids by pattern, and every decision would pay for it.
"""

from django.db import migrations

DROP = """
DO $$
DECLARE
    pattern_index text;
BEGIN
    FOR pattern_index IN
        SELECT indexname FROM pg_indexes
        WHERE schemaname = current_schema() AND tablename = 'predictions_decision'
              AND indexdef LIKE '%text_pattern_ops%'
    LOOP
        EXECUTE format('DROP INDEX %I', pattern_index);
    END LOOP;
END
$$
"""


class Migration(migrations.Migration):
    dependencies = [("predictions", "0001_initial")]
    operations = [migrations.RunSQL(DROP, migrations.RunSQL.noop)]
