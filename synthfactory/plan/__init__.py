"""Spec -> plan, pure: allocation, slots, units, seeds, conditions, cost. Computed when needed, never stored."""
