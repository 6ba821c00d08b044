from django.db import migrations


class Migration(migrations.Migration):
    """A list of recent transactions is some kilobytes, and PostgreSQL compresses what is over two.

    That took more than a third of writing it, with every score, and some of every read. Up to a page it is stored as it
    is from now on; rows change as they are written.
    """

    dependencies = [
        ("features", "0009_label_reports"),
    ]

    operations = [
        migrations.RunSQL(
            "ALTER TABLE features_featurerow SET (toast_tuple_target = 8160)",
            "ALTER TABLE features_featurerow RESET (toast_tuple_target)",
        ),
    ]
