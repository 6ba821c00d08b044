"""Whoever asks "is there a number above mine" of the policies' revisions misses no edit.

A number is drawn when a row is written, and seen when its transaction commits: of two edits at the same time the one
with the smaller number may come second, and a reader who has seen the larger one would never look at it. So a row
whose number is no longer the newest when its transaction commits gets a new one, under a lock that lasts as long as
the commit itself. Nobody waits for a transaction that is merely open.

The trigger is deferred, and holds for every way of writing: ORM, admin, another trigger, raw SQL. Model activations
have the same one (`predictions/migrations`).
"""

from django.db import migrations

FORWARD = """
CREATE FUNCTION features_number_in_commit_order() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    sequence text := pg_get_serial_sequence(TG_RELID::regclass::text, 'id');
    newest bigint;
    drawn bigint;
BEGIN
    -- One lock for all tables that are numbered so: a transaction that writes to two of them cannot wait in a circle.
    PERFORM pg_advisory_xact_lock(7812730952218275843);
    EXECUTE format('SELECT max(id) FROM %s', TG_RELID::regclass) INTO newest;
    -- The sequence tells of those, too, that a snapshot older than the lock does not show.
    EXECUTE format('SELECT last_value FROM %s', sequence) INTO drawn;
    IF greatest(newest, drawn) > NEW.id THEN
        -- A restored sequence may lie behind the rows.
        drawn := greatest(nextval(sequence), newest + 1);
        PERFORM setval(sequence, drawn);
        EXECUTE format('UPDATE %s SET id = $1 WHERE id = $2', TG_RELID::regclass) USING drawn, NEW.id;
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER features_number_in_commit_order AFTER INSERT ON features_policyrevision
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION features_number_in_commit_order();
ALTER TABLE features_policyrevision ENABLE ALWAYS TRIGGER features_number_in_commit_order;
"""

REVERSE = """
DROP TRIGGER features_number_in_commit_order ON features_policyrevision;
DROP FUNCTION features_number_in_commit_order();
"""


class Migration(migrations.Migration):
    dependencies = [("features", "0010_activity_uncompressed")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
