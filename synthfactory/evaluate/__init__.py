"""Measures of drawn tiles against real ones, on arrays of embeddings (no torch)."""
