"""What all tests share. The servers come from the plugin `tests/fixtures/servers.py`."""

pytest_plugins = ["tests.fixtures.population", "tests.fixtures.topologies"]
