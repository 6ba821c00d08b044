"""Whatever changes the ledger says whose features follow from what it changed: imports, labels, SQL by hand.

Statement triggers with transition tables write the lines, in the writer's own transaction: a change of the ledger and
its lines are committed together or not at all. A line says that a group of an entity is behind the ledger. It stays
until the row was derived anew (`features/catch_up.py`, or a build), and until then reads say `stale`.

Writers of the ledger do not wait for one another, nor for a worker, on account of lines. One that is there already does
for this change as well, if nobody removes it before this transaction has ended: so it is locked against that, or, if
somebody is just about to remove it, another one is added.

The same transaction tells the journal, with numbers above those of the rows: so copies in the cache go as they would
after a change of the rows, and the next reader asks the source, which knows of the line.

A score writes its customer's activity in the same transaction as the ledger, and says so
(`mlserve.activity_follows`): nothing is behind then. Profiles and embeddings hold nothing of the day that is under way,
merchant risk nothing of the last seven days: what occurred then changes none of them (`features/cutoffs.py`).
"""

from django.db import migrations, models

_NOTE = """
CREATE FUNCTION features_note_outdated_%(operation)s() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    midnight timestamptz := date_trunc('day', now(), 'UTC');
BEGIN
    WITH changed AS MATERIALIZED (
        %(changed)s
    ), customers AS (
        SELECT customer_id AS id, bool_or(occurred_at < midnight) AS past
        FROM changed WHERE moved GROUP BY customer_id
    ), merchants AS (
        -- An hour to spare: windows end at the last half hour before the build.
        SELECT merchant_id AS id, bool_or(moved AND occurred_at < midnight) AS past,
               bool_or(occurred_at <= now() - interval '168 hours'
                       AND occurred_at > now() - interval '889 hours') AS in_windows
        FROM changed GROUP BY merchant_id
    ), behind AS MATERIALIZED (
        SELECT 'customer_activity' AS "group", id AS entity_id FROM customers
        UNION ALL SELECT 'customer_profile', id FROM customers WHERE past
        UNION ALL SELECT 'customer_embedding', id FROM customers WHERE past
        UNION ALL SELECT 'merchant_profile', id FROM merchants WHERE past
        UNION ALL SELECT 'merchant_embedding', id FROM merchants WHERE past
        UNION ALL SELECT 'merchant_risk', id FROM merchants WHERE in_windows
    ), waiting AS MATERIALIZED (
        SELECT line."group", line.entity_id FROM behind
        JOIN features_outdatedfeature AS line ON (line."group", line.entity_id) = (behind."group", behind.entity_id)
        FOR KEY SHARE OF line SKIP LOCKED
    ), lines AS (
        INSERT INTO features_outdatedfeature ("group", entity_id, at)
        SELECT "group", entity_id, now() FROM behind
        WHERE NOT EXISTS (
            SELECT FROM waiting WHERE (waiting."group", waiting.entity_id) = (behind."group", behind.entity_id)
        )
    )
    INSERT INTO features_journal ("group", entity_ids, versions)
    SELECT counted."group", array_agg(counted.entity_id), array_agg(nextval('features_version_seq'))
    FROM (SELECT "group", entity_id, (row_number() OVER () - 1) / 32 AS pack FROM behind) AS counted
    GROUP BY counted."group", counted.pack;
    RETURN NULL;
END
$$;
"""

_ALL_OF = "SELECT customer_id, merchant_id, occurred_at, true AS moved FROM %s"

# A label that nobody has given counts as genuine: to say so changes nothing. By hand, the id may change as well.
_CHANGED = """
        SELECT side.customer_id, side.merchant_id, side.occurred_at, moved
        FROM removed AS was FULL JOIN added AS new_one USING (id)
        CROSS JOIN LATERAL (
            SELECT (was.occurred_at, was.customer_id, was.merchant_id, was.amount, was.currency)
                   IS DISTINCT FROM
                   (new_one.occurred_at, new_one.customer_id, new_one.merchant_id, new_one.amount, new_one.currency)
        ) AS compared (moved)
        CROSS JOIN LATERAL (
            VALUES (was.customer_id, was.merchant_id, was.occurred_at),
                   (new_one.customer_id, new_one.merchant_id, new_one.occurred_at)
        ) AS side (customer_id, merchant_id, occurred_at)
        WHERE (moved OR coalesce(was.is_fraud, false) <> coalesce(new_one.is_fraud, false))
            AND side.customer_id IS NOT NULL
"""

FORWARD = (
    _NOTE % {"operation": "insert", "changed": _ALL_OF % "added"}
    + _NOTE % {"operation": "update", "changed": _CHANGED.strip()}
    + _NOTE % {"operation": "delete", "changed": _ALL_OF % "removed"}
    + """
CREATE TRIGGER features_note_insert AFTER INSERT ON features_transaction
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('mlserve.activity_follows', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION features_note_outdated_insert();
ALTER TABLE features_transaction ENABLE ALWAYS TRIGGER features_note_insert;
CREATE TRIGGER features_note_update AFTER UPDATE ON features_transaction
    REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT
    EXECUTE FUNCTION features_note_outdated_update();
ALTER TABLE features_transaction ENABLE ALWAYS TRIGGER features_note_update;
CREATE TRIGGER features_note_delete AFTER DELETE ON features_transaction
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT
    EXECUTE FUNCTION features_note_outdated_delete();
ALTER TABLE features_transaction ENABLE ALWAYS TRIGGER features_note_delete;

-- Before, because it may be one of several tables that are emptied at once, and nothing may be left in this one.
CREATE FUNCTION features_note_outdated_truncate() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO features_outdatedfeature ("group", entity_id, at)
    SELECT "group", entity_id, now() FROM features_featurerow
    WHERE deleted_at IS NULL AND "group" <> 'merchant_traffic';
    IF FOUND THEN
        UPDATE features_cachepartition SET epoch = epoch + 1;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER features_note_truncate BEFORE TRUNCATE ON features_transaction
    FOR EACH STATEMENT EXECUTE FUNCTION features_note_outdated_truncate();
ALTER TABLE features_transaction ENABLE ALWAYS TRIGGER features_note_truncate;
"""
)

REVERSE = """
DROP TRIGGER features_note_truncate ON features_transaction;
DROP FUNCTION features_note_outdated_truncate();
DROP TRIGGER features_note_delete ON features_transaction;
DROP FUNCTION features_note_outdated_delete();
DROP TRIGGER features_note_update ON features_transaction;
DROP FUNCTION features_note_outdated_update();
DROP TRIGGER features_note_insert ON features_transaction;
DROP FUNCTION features_note_outdated_insert();
"""


class Migration(migrations.Migration):
    dependencies = [("features", "0012_partitions_of_this_server")]
    operations = [
        migrations.CreateModel(
            name="OutdatedFeature",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("group", models.TextField()),
                ("entity_id", models.TextField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index(fields=["group", "entity_id"], include=["at"], name="outdated_feature")],
            },
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
