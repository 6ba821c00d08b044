"""English, the one language of the admin."""
