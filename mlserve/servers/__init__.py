"""The parts of the embedded servers: where they lie, how they live, what is remembered. See `embedded.py`."""
