"""Django's own tests of its caches, run against L1's backend."""
