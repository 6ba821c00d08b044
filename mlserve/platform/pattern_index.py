"""Takes away the second index that Django gives every text key for LIKE, where nobody searches ids by pattern.

Every row that is written would pay for it: with it, loading a ledger takes a third longer.
"""

from django.db.migrations import RunSQL

_DROP = """
DO $$
DECLARE
    pattern_index text;
BEGIN
    FOR pattern_index IN
        SELECT indexname FROM pg_indexes
        WHERE schemaname = current_schema() AND tablename = '{table}' AND indexdef LIKE '%text_pattern_ops%'
    LOOP
        EXECUTE format('DROP INDEX %I', pattern_index);
    END LOOP;
END
$$
"""


def without_pattern_index(table: str) -> RunSQL:
    """The migration step for one table. Going back leaves it away."""
    return RunSQL(_DROP.replace("{table}", table), RunSQL.noop)
