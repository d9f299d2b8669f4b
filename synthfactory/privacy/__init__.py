"""Mechanisms that stand between real tiles' embeddings and the conditions of drawn ones. Arrays and files; no torch, no Ray."""
