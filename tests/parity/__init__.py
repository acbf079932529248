"""Comparison with golden tensors of reference implementations; `python -m tests.parity FILE …` runs it."""
