"""Versions, soft delete and the policies' history, held by the database itself: no writer can forget them.

The version is drawn in a BEFORE row trigger, that is under the row's lock, from a sequence without cache: of two
commits of a row the later one has the larger version, whoever wrote it (FRESHNESS, section 2).
"""

from django.db import migrations

FORWARD = """
CREATE SEQUENCE features_version_seq AS bigint CACHE 1;

CREATE FUNCTION features_draw_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := nextval('features_version_seq');
    RETURN NEW;
END
$$;

CREATE TRIGGER features_draw_version BEFORE INSERT OR UPDATE ON features_featurerow
    FOR EACH ROW EXECUTE FUNCTION features_draw_version();
ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_draw_version;

CREATE FUNCTION features_refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('mlserve.purge', true) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION 'rows of % are only deleted softly', TG_TABLE_NAME
            USING HINT = 'Set deleted_at; a purge of long deleted rows sets mlserve.purge to on.',
                  ERRCODE = 'restrict_violation';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD END;
END
$$;

CREATE TRIGGER features_refuse_delete BEFORE DELETE ON features_featurerow
    FOR EACH ROW EXECUTE FUNCTION features_refuse_removal();
ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_refuse_delete;

CREATE TRIGGER features_refuse_truncate BEFORE TRUNCATE ON features_featurerow
    FOR EACH STATEMENT EXECUTE FUNCTION features_refuse_removal();
ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_refuse_truncate;

CREATE FUNCTION features_record_policy() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was jsonb := CASE TG_OP WHEN 'UPDATE' THEN to_jsonb(OLD) - 'updated_at' END;
    is_now jsonb := to_jsonb(NEW) - 'updated_at';
BEGIN
    IF was IS DISTINCT FROM is_now THEN
        INSERT INTO features_policyrevision (policy, before, after) VALUES (NEW.name, was, is_now);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER features_record_policy AFTER INSERT OR UPDATE ON features_ttlpolicy
    FOR EACH ROW EXECUTE FUNCTION features_record_policy();
ALTER TABLE features_ttlpolicy ENABLE ALWAYS TRIGGER features_record_policy;
"""

REVERSE = """
DROP TRIGGER features_record_policy ON features_ttlpolicy;
DROP FUNCTION features_record_policy();
DROP TRIGGER features_refuse_truncate ON features_featurerow;
DROP TRIGGER features_refuse_delete ON features_featurerow;
DROP FUNCTION features_refuse_removal();
DROP TRIGGER features_draw_version ON features_featurerow;
DROP FUNCTION features_draw_version();
DROP SEQUENCE features_version_seq;
"""


class Migration(migrations.Migration):
    dependencies = [("features", "0001_initial")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
