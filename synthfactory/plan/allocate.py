"""How many tiles of each class: counts as written, or fractions of a total by largest remainders."""

from __future__ import annotations

import math
from fractions import Fraction

from synthfactory.spec.schema import Spec


def class_counts(spec: Spec) -> dict[str, int]:
    """Tiles per class, in spec order. Fractions sum to `total` exactly; the largest remainders get the odd tiles (ties: first).

    InputError where a fraction of `total` comes to no tile at all: a class that was asked for would silently be absent.
    """
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
    for name, count in counts.items():
        if count == 0:
            enough = math.ceil(whole / shares[name])
            raise spec.error(
                f"classes.{name}",
                f"comes to no tile: {spec.classes[name].fraction:g} of total = {spec.total:,}; "
                f"a total of {enough:,} or more gives it one, or leave the class out",
            )
    return counts
