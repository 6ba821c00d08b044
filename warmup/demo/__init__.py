"""`manage.py demo`: everything on one machine, from an empty folder to the first score and beyond."""
