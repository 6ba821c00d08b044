"""What PostgreSQL keeps of the cache's partitions says by itself whether it was written here.

Epochs, snapshots and `trimmed` are in numbers of this server's transactions. A dump, a logical copy or a table that is
copied by hand brings them to where they mean nothing, also within one server. PostgreSQL keeps with each row the number
of the transaction that wrote it (`xmin`), and no copy can bring that along: where it is not the one that the row names,
the row was not written here. What moves whole files keeps both: a base backup, a promoted standby, `pg_upgrade`; there
the system identifier and the timeline tell.

A row that was brought stays one that was brought, whoever changes it, until the relay makes it this server's.
"""

from django.db import migrations

FORWARD = """
ALTER TABLE features_cachepartition ADD COLUMN written_by xid8 NOT NULL DEFAULT '0';

CREATE FUNCTION features_keep_writer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.written_by = OLD.written_by AND OLD.xmin = OLD.written_by::xid THEN
        NEW.written_by := pg_current_xact_id();
    END IF;
    RETURN NEW;
END
$$;

UPDATE features_cachepartition SET written_by = pg_current_xact_id();

CREATE TRIGGER features_keep_writer BEFORE UPDATE ON features_cachepartition
    FOR EACH ROW EXECUTE FUNCTION features_keep_writer();
"""

REVERSE = """
DROP TRIGGER features_keep_writer ON features_cachepartition;
DROP FUNCTION features_keep_writer();
ALTER TABLE features_cachepartition DROP COLUMN written_by;
"""


class Migration(migrations.Migration):
    dependencies = [("features", "0011_numbers_in_commit_order")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
