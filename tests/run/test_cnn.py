"""The small CNN's arms: validation meets nobody whom the network learnt from, and a fit that was kept is not made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.utility import Trial
from synthfactory.model.tile_cnn import Batch
from synthfactory.run import cnn
from synthfactory.run.cnn import Pixels, cnn_arms, fits

REAL, DRAWN, TEST = 24, 36, 12


def tiles(count: int, patients: int, name: str) -> Tiles:
    """Two classes; patients of each in turn."""
    number = np.arange(count)
    groups = np.array([f"{name}{n % 2}-{n // 2 % patients}" for n in number], np.str_)
    return Tiles(np.zeros((count, 2), np.float32), number % 2, groups)


def flat(first: int, count: int) -> np.ndarray:
    """Tiles of one grey each, by which they are known."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 3))


@pytest.fixture
def trial() -> tuple[Trial, Pixels]:
    real, drawn = tiles(REAL, 6, "p"), tiles(DRAWN, 6, "p")
    sources = tuple(frozenset([str(name)]) for name in drawn.groups)
    both = Trial(("alpha", "beta"), real, drawn, tiles(TEST, 6, "unseen"), None, sources)
    return both, Pixels(flat(1, REAL), flat(1 + REAL, DRAWN), flat(1 + REAL + DRAWN, TEST))


class Seen:
    """What each network learnt from and was asked of, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.learnt: list[set[int]] = []
        self.asked: list[set[int]] = []

        def fit(classes: int, batch_of: Callable[[int], Batch], steps: int, seed: int) -> Any:
            batches = [batch_of(step)[0] for step in range(20)]
            self.learnt.append({round(float(image.max()) * 255) for batch in batches for image in batch})

        def logits(network: Any, images: np.ndarray) -> np.ndarray:
            self.asked.append({int(image.max()) for image in images})
            return np.zeros((len(images), 2), np.float32)

        monkeypatch.setattr(cnn, "fit_cnn", fit)
        monkeypatch.setattr(cnn, "logits_of", logits)
        monkeypatch.setattr(cnn, "augmented", lambda tile, random, spread: tile)


def test_nobody_who_judges_has_taught(trial: tuple[Trial, Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    cnn_arms(*trial, seeds=2, steps=1)
    assert len(seen.learnt) == fits(2)
    of_real = {1 + at: str(name) for at, name in enumerate(trial[0].real.groups)}
    of_drawn = {1 + REAL + at: str(name) for at, name in enumerate(trial[0].drawn.groups)}
    on_test = {1 + REAL + DRAWN + at for at in range(TEST)}
    folds = 0
    for learnt, asked in zip(seen.learnt, seen.asked, strict=True):
        taught = {{**of_real, **of_drawn}[grey] for grey in learnt}
        if asked == on_test:
            continue
        folds += 1
        assert asked
        assert asked <= of_real.keys()
        assert not taught & {of_real[grey] for grey in asked}
    assert folds == 12  # two strengths of stains over three folds, twice
    assert any(learnt & of_drawn.keys() and learnt & of_real.keys() for learnt in seen.learnt)


@pytest.mark.parametrize("known", [True, False])
def test_all_folds_choose_the_stains_of_all_arms(
    trial: tuple[Trial, Pixels], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fold is for the weaker ones, and the others, a little less so each, for the stronger ones."""
    spreads: list[float] = []
    asked = 0

    def stained(tile: np.ndarray, random: np.random.Generator, spread: float) -> np.ndarray:
        spreads.append(spread)
        return tile

    def fit(classes: int, batch_of: Callable[[int], Batch], steps: int, seed: int) -> float:
        spreads.clear()
        batch_of(0)
        (spread,) = set(spreads)
        return spread

    def logits(network: float, images: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += 1
        sure = {(1, 0.1): -6.0, (2, 0.05): -4.0, (3, 0.05): -4.0}.get(((asked + 1) // 2, network), 0.0)
        of_class = (images.max((1, 2, 3)).astype(int) - 1) % 2  # as `tiles` has it
        return np.stack([sure * (of_class == 0), sure * (of_class == 1)], axis=1)

    monkeypatch.setattr(cnn, "fit_cnn", fit)
    monkeypatch.setattr(cnn, "logits_of", logits)
    monkeypatch.setattr(cnn, "augmented", stained)
    given = trial[0] if known else replace(trial[0], sources=None)
    learnt = list[tuple[str, str, str]]()

    def once(key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        learnt.append((key[0], key[1], key[3]))
        return make()

    found = cnn_arms(given, trial[1], seeds=1, steps=1, once=once)
    options = {arm: outcome.chosen[0].option for arm, outcome in found.items()}
    stains = {"oversampled, stained anew", "real + synthetic"}
    assert options == {arm: 0.1 if arm in stains else None for arm in found}
    assert {(arm, spread) for arm, spread, part in learnt if part == "test" and arm in stains} == {
        (arm, "0.1") for arm in stains
    }


def test_a_fit_that_was_kept_is_not_made_again(trial: tuple[Trial, Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    seen, kept = Seen(monkeypatch), dict[tuple[str, ...], dict[str, Any]]()

    def once(key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if tuple(key) not in kept:
            kept[tuple(key)] = make()
        return kept[tuple(key)]

    first = cnn_arms(*trial, seeds=1, steps=1, once=once)
    assert len(kept) == len(seen.learnt) == fits(1)
    again = cnn_arms(*trial, seeds=1, steps=1, once=once)
    assert len(seen.learnt) == fits(1)
    assert all(np.array_equal(first[arm].probabilities, again[arm].probabilities) for arm in first)
