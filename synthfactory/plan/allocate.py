"""How many tiles of each class: counts as written, or fractions of a total by largest remainders."""

from __future__ import annotations

from fractions import Fraction

from synthfactory.spec.schema import Spec


def class_counts(spec: Spec) -> dict[str, int]:
    """Tiles per class, in spec order. Fractions sum to `total` exactly; the largest remainders get the odd tiles (ties: first)."""
    if spec.total is None:
        return {name: int(item.count or 0) for name, item in spec.classes.items()}
    shares = {name: Fraction(str(item.fraction)) for name, item in spec.classes.items()}
    whole = sum(shares.values())  # within 1e-6 of 1: thirds cannot be written exactly
    exact = {name: spec.total * share / whole for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    left = spec.total - sum(counts.values())
    order = sorted(exact, key=lambda name: counts[name] - exact[name])  # stable: ties keep spec order
    for name in order[:left]:
        counts[name] += 1
    return counts
