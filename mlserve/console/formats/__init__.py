"""How the admin writes moments: Django's `FORMAT_MODULE_PATH`."""
