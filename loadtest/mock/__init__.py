"""A mock server with known times, for the self-test and the tests."""
