"""The journal: which rows of features every database transaction has written, held by the database itself.

Statement triggers with transition tables write it, one INSERT for each statement whatever the number of its rows, in
the writer's own transaction: a row and its journal are committed together or not at all (FRESHNESS, section 3).

`xid` is the tag by which a reader asks for "committed now, and not yet at that snapshot" (section 4). `at` only says
in which partition a line lies: a partition for every hour (`features/journal_partitions.py`), and one for lines that
have no other, so that a write never fails for want of a partition.

`features_cachepartition` holds what the cache must not be able to lose: the epoch of each of its partitions, which is
raised where nobody can tell any more what has changed; the watermark it was last seen to have; of which incarnation of
this database; and up to which transaction the journal has been trimmed.
"""

from django.db import migrations

FORWARD = """
CREATE TABLE features_journal (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    version bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    "group" text NOT NULL,
    entity_id text NOT NULL
) PARTITION BY RANGE (at);
CREATE INDEX features_journal_xid ON features_journal (xid);
CREATE TABLE features_journal_default PARTITION OF features_journal DEFAULT;

CREATE TABLE features_cachepartition (
    partition integer PRIMARY KEY,
    epoch bigint NOT NULL,
    snapshot pg_snapshot NOT NULL,
    safe_at timestamptz NOT NULL,
    system_identifier bigint NOT NULL,
    timeline bigint NOT NULL,
    trimmed xid8 NOT NULL DEFAULT '0'
);

-- With the schema in its text: to set search_path for each call would cost a third of what the trigger does.
DO $outer$
BEGIN
    EXECUTE format($function$
        CREATE FUNCTION features_write_journal() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO %I.features_journal (version, "group", entity_id)
            SELECT version, "group", entity_id FROM written;
            RETURN NULL;
        END
        $$
    $function$, current_schema());
END
$outer$;

CREATE TRIGGER features_journal_insert AFTER INSERT ON features_featurerow
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION features_write_journal();
ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_journal_insert;
CREATE TRIGGER features_journal_update AFTER UPDATE ON features_featurerow
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION features_write_journal();
ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_journal_update;

-- A purge. Its rows were deleted softly long ago, unless somebody errs: a number above theirs makes copies go.
CREATE FUNCTION features_write_journal_of_purge() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO features_journal (version, "group", entity_id)
    SELECT nextval('features_version_seq'), "group", entity_id FROM removed;
    RETURN NULL;
END
$$;

CREATE TRIGGER features_journal_delete AFTER DELETE ON features_featurerow
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION features_write_journal_of_purge();
ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_journal_delete;

-- Nobody can name the rows that a TRUNCATE removes: all copies become void.
CREATE FUNCTION features_raise_epochs() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE features_cachepartition SET epoch = epoch + 1;
    RETURN NULL;
END
$$;

CREATE TRIGGER features_raise_epochs AFTER TRUNCATE ON features_featurerow
    FOR EACH STATEMENT EXECUTE FUNCTION features_raise_epochs();
ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_raise_epochs;
"""

REVERSE = """
DROP TRIGGER features_raise_epochs ON features_featurerow;
DROP FUNCTION features_raise_epochs();
DROP TRIGGER features_journal_delete ON features_featurerow;
DROP FUNCTION features_write_journal_of_purge();
DROP TRIGGER features_journal_update ON features_featurerow;
DROP TRIGGER features_journal_insert ON features_featurerow;
DROP FUNCTION features_write_journal();
DROP TABLE features_cachepartition;
DROP TABLE features_journal;
"""


class Migration(migrations.Migration):
    dependencies = [("features", "0004_write_strategies")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
