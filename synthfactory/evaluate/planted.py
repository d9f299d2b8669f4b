"""Copies made on purpose, to see whether they would be found: real tiles shifted, stained anew, compressed, turned, mirrored, blended.

Two families that do the same things in other ways: what is set on TUNING (the length of shortlists) is tried on TESTING.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from synthfactory.evaluate.density import optical_density, pixels

LEAST_BLEND = 0.7  # share of the copied tile in a blend
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def saved_anew(tile: np.ndarray, form: str, **options: int) -> np.ndarray:
    """uint8 (H, W, 3) as it reads after Pillow saved it as `form` (JPEG, WEBP) with these options (quality, subsampling)."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile)).save(buffer, form, **options)
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def _offset(side: int, share: float, random: np.random.Generator) -> tuple[int, int]:
    reach = max(1, int(share * side))
    y, x = (int(random.integers(1, reach + 1)) * (1 if random.random() < 0.5 else -1) for _ in range(2))
    return y, x


def _moved_over(tile: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What leaves on one side is gone; another tile shows where it was."""
    (y, x), side = _offset(len(tile), 0.2, random), len(tile)
    found = other.copy()
    stays = tile[max(0, -y) : side - max(0, y), max(0, -x) : side - max(0, x)]
    found[max(0, y) : side + min(0, y), max(0, x) : side + min(0, x)] = stays
    return np.asarray(found)


def _moved_mirrored(tile: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What is missing on one side is mirrored at the edge."""
    (y, x), side = _offset(len(tile), 0.17, random), len(tile)
    wide = np.pad(tile, ((abs(y),) * 2, (abs(x),) * 2, (0, 0)), mode="symmetric")
    return np.asarray(wide[abs(y) - y : abs(y) - y + side, abs(x) - x : abs(x) - x + side])


def _stained_by_channel(tile: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return pixels(optical_density(tile) * random.uniform(0.75, 1.3, 3))


def _stained_across(tile: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Densities of the three channels run into one another, and their contrast changes."""
    mix = np.eye(3) + random.uniform(-0.12, 0.12, (3, 3))
    return pixels(np.maximum(optical_density(tile) @ mix, 0.0) ** random.uniform(0.85, 1.15))


def _blended(tile: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    share = random.uniform(LEAST_BLEND, 0.95)
    return (share * tile + (1 - share) * other).astype(np.uint8)


def _blended_densities(tile: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    share = random.uniform(LEAST_BLEND, 0.9)
    return pixels(share * optical_density(tile) + (1 - share) * optical_density(other))


def _resampled(tile: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    side = len(tile)
    small = Image.fromarray(np.ascontiguousarray(tile)).resize((int(0.6 * side),) * 2, Image.Resampling.BILINEAR)
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


TUNING: dict[str, Change] = {
    "shifted": _moved_over,
    "stained anew": _stained_by_channel,
    "compressed": lambda tile, other, random: saved_anew(
        tile, "JPEG", quality=int(random.integers(40, 81)), subsampling=0
    ),
    "mirrored": lambda tile, other, random: tile[:, ::-1],
    "turned": lambda tile, other, random: np.rot90(tile),
    "blended": _blended,
}
TESTING: dict[str, Change] = {
    "shifted": _moved_mirrored,
    "stained anew": _stained_across,
    "compressed": lambda tile, other, random: saved_anew(
        tile, "JPEG", quality=int(random.integers(25, 61)), subsampling=2
    ),
    "resampled": _resampled,
    "mirrored": lambda tile, other, random: tile[::-1] if random.random() < 0.5 else tile.transpose(1, 0, 2),
    "turned": lambda tile, other, random: np.rot90(tile, int(random.integers(2, 4))),
    "blended": _blended_densities,
}


def plant(
    tile: np.ndarray, other: np.ndarray, family: dict[str, Change], names: Sequence[str], random: np.random.Generator
) -> np.ndarray:
    """The tile uint8 (H, H, 3) after these changes of a family, in order; `other` is what it is blended with."""
    for name in names:
        tile = family[name](tile, other, random)
    return np.ascontiguousarray(tile)


def schedule(family: dict[str, Change], count: int) -> list[tuple[str, ...]]:
    """Which changes each of `count` copies gets: every one alone, then a turn with a stain and compression, and round again."""
    rounds: list[tuple[str, ...]] = [*((name,) for name in family), ("turned", "stained anew", "compressed")]
    return [rounds[number % len(rounds)] for number in range(count)]
