"""Golden files: what every shipped recipe resolves to, and the test that they still do."""
