"""A line of the journal tells up to 32 rows that one statement wrote into one group.

A line of its own for each row cost a build a quarter of its throughput: most of that was the heap tuple and the index
entry of every line. A pack of 32 costs half of it and a third of the disk. One that is much longer would leave its page
and be compressed, which costs more than it saves.

`features_journal_row` has a line for each row, as readers want it. The columns have other names than before, so that
the statement of an older relay fails, and its watermarks stand still, where it would otherwise read a pack as one row.
"""

from django.db import migrations

FORWARD = """
-- First the table that is written to: whoever is within the trigger has ended then, and nobody enters it.
LOCK TABLE features_featurerow IN SHARE ROW EXCLUSIVE MODE;

ALTER TABLE features_journal
    ALTER COLUMN version TYPE bigint[] USING ARRAY[version],
    ALTER COLUMN entity_id TYPE text[] USING ARRAY[entity_id];
ALTER TABLE features_journal RENAME COLUMN version TO versions;
ALTER TABLE features_journal RENAME COLUMN entity_id TO entity_ids;

-- Somebody may write a line by hand: what is no pair tells nothing.
CREATE VIEW features_journal_row AS
    SELECT line.xid, line.at, line."group", pair.entity_id, pair.version
    FROM features_journal AS line, unnest(line.entity_ids, line.versions) AS pair (entity_id, version)
    WHERE pair.entity_id IS NOT NULL AND pair.version IS NOT NULL;

-- With the schema in its text: to set search_path for each call would cost a third of what the trigger does.
DO $outer$
BEGIN
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION features_write_journal() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            -- One row is the usual case; to number and group it would cost half as much again.
            PERFORM FROM written OFFSET 1 LIMIT 1;
            IF NOT FOUND THEN
                INSERT INTO %1$I.features_journal ("group", entity_ids, versions)
                SELECT "group", ARRAY[entity_id], ARRAY[version] FROM written;
            ELSE
                INSERT INTO %1$I.features_journal ("group", entity_ids, versions)
                SELECT counted."group", array_agg(counted.entity_id), array_agg(counted.version)
                FROM (
                    SELECT "group", entity_id, version, (row_number() OVER () - 1) / 32 AS pack FROM written
                ) AS counted
                GROUP BY counted."group", counted.pack;
            END IF;
            RETURN NULL;
        END
        $$
    $function$, current_schema());
END
$outer$;

CREATE OR REPLACE FUNCTION features_write_journal_of_purge() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO features_journal ("group", entity_ids, versions)
    SELECT "group", ARRAY[entity_id], ARRAY[nextval('features_version_seq')] FROM removed;
    RETURN NULL;
END
$$;
"""

REVERSE = """
LOCK TABLE features_featurerow IN SHARE ROW EXCLUSIVE MODE;

INSERT INTO features_journal (xid, at, "group", entity_ids, versions)
SELECT line.xid, line.at, line."group", ARRAY[pair.entity_id], ARRAY[pair.version]
FROM features_journal AS line, unnest(line.entity_ids, line.versions) AS pair (entity_id, version)
WHERE cardinality(line.entity_ids) > 1;
DROP VIEW features_journal_row;
DELETE FROM features_journal WHERE cardinality(entity_ids) <> 1 OR cardinality(versions) <> 1;

ALTER TABLE features_journal RENAME COLUMN versions TO version;
ALTER TABLE features_journal RENAME COLUMN entity_ids TO entity_id;
ALTER TABLE features_journal
    ALTER COLUMN version TYPE bigint USING version[1],
    ALTER COLUMN entity_id TYPE text USING entity_id[1];

DO $outer$
BEGIN
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION features_write_journal() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO %I.features_journal (version, "group", entity_id)
            SELECT version, "group", entity_id FROM written;
            RETURN NULL;
        END
        $$
    $function$, current_schema());
END
$outer$;

CREATE OR REPLACE FUNCTION features_write_journal_of_purge() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO features_journal (version, "group", entity_id)
    SELECT nextval('features_version_seq'), "group", entity_id FROM removed;
    RETURN NULL;
END
$$;
"""


class Migration(migrations.Migration):
    dependencies = [("features", "0007_inspection")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
