"""Without the second index that Django gives every text key for LIKE.

Nobody searches ids by pattern, and every recorded transaction would pay for it: loading a ledger takes a third longer.
"""

from django.db import migrations

DROP = """
DO $$
DECLARE
    pattern_index text;
BEGIN
    FOR pattern_index IN
        SELECT indexname FROM pg_indexes
        WHERE schemaname = current_schema() AND tablename = 'features_transaction'
              AND indexdef LIKE '%text_pattern_ops%'
    LOOP
        EXECUTE format('DROP INDEX %I', pattern_index);
    END LOOP;
END
$$
"""


class Migration(migrations.Migration):
    dependencies = [("features", "0002_versions")]
    operations = [migrations.RunSQL(DROP, migrations.RunSQL.noop)]
