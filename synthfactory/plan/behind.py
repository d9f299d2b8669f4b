"""How many patients really stand behind the conditions of a class, once so many tiles are asked for.

Conditions follow patients in turn (conditions.py, bags.py), however many rows each has in the bank. So the numbers of conditions w of the P
patients follow from counts alone, and as many patients as (sum w)^2 / sum w^2 with equally many conditions would weigh the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthfactory.spec.bags import Bags
from synthfactory.spec.schema import Spec


@dataclass(frozen=True)
class Behind:
    """`patients` that give a condition, and the `effective` number of them; of blends both are what they are at most."""

    patients: int
    effective: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else ''}{in_short(self.effective)}"

    def in_words(self) -> str:
        """'7.12 effective patients'."""
        return f"{'at most ' if self.at_most else ''}{counted_effective(self.effective)}"


def in_short(effective: float) -> str:
    """Three digits, or all before the point."""
    return f"{effective:,.0f}" if effective >= 100 else f"{effective:.3g}"


def counted_effective(effective: float) -> str:
    """'1 effective patient', '7.12 effective patients'."""
    text = in_short(effective)
    return f"{text} effective {'patient' if text == '1' else 'patients'}"


def behind(spec: Spec, patients: int, count: int) -> Behind | None:
    """Behind `count` tiles of a class that has so many patients. None where no condition is a patient's: a release, or no conditions.

    A blend's weights are drawn, and patients meet inside its clusters: there it is said how many can stand behind the tiles at all.
    """
    if not patients or not count or spec.embeddings.unconditional or spec.privacy.mechanism == "dp":
        return None
    if spec.privacy.mechanism == "mix":
        most = min(patients, count * int(spec.privacy.value("k")))
        return Behind(most, float(most), at_most=True)
    given = conditions_of(patients, spec.bags if spec.bags_follow_patients else None, count).astype(np.float64)
    return Behind(int((given > 0).sum()), float(given.sum() ** 2 / (given**2).sum()))


def conditions_of(patients: int, bags: Bags | None, count: int) -> np.ndarray:
    """int64 (P,): how many of a class's first `count` tiles each patient conditions, in the order in which they take turns."""
    found = np.zeros(patients, np.int64)
    if bags is None:
        found += count // patients
        found[: count % patients] += 1
        return found
    # Bag b takes positions b m ... b m + m - 1 of that order, and each gives size / m tiles; the last bag may be begun only.
    full, rest = divmod(count, bags.size)
    passes, over = divmod(full * bags.group, patients)
    found += passes * (bags.size // bags.group)
    found[:over] += bags.size // bags.group
    for at in range(min(bags.group, rest)):
        found[(over + at) % patients] += -(-(rest - at) // bags.group)
    return found
