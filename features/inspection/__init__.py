"""Whether copies in the cache are what Postgres says: the inspector. Start reading at `inspector.py`."""
