"""Runs a plan: prepares, hands units to workers (in this process or through Ray), commits, finalises."""
