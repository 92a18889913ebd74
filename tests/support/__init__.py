"""Shared helpers of the tests: tiny models, batches, strategies, references."""
