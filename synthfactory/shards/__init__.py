"""Shards on disk and object stores: the record, the tar, the commit protocol, verification and mending (no torch, no ray)."""
