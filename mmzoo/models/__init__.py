"""Adapters, trunk and heads put together, and one folder a published family."""
