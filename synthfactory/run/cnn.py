"""The small CNN of `evaluate --cnn`: the same arms as the probes', on pixels, with nobody's encoder between.

Every arm has as many steps, and turns and mirrors its tiles; what differs is which tiles it learns from, and how often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from synthfactory.evaluate.density import augmented
from synthfactory.evaluate.intervals import UnmeasurableError
from synthfactory.evaluate.probes import FOLDS, Choice, balanced_log_loss, even, folds
from synthfactory.evaluate.utility import BOTH, SYNTHETIC, Outcome, Trial
from synthfactory.model.tile_cnn import Batch, fit_cnn, logits_of, pixels_of

BATCH = 48
Tick = Callable[[int], None]
Once = Callable[[Sequence[str], Callable[[], dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Pixels:
    """uint8 (N, H, W, 3) of the trial's real, drawn and test tiles, row by row."""

    real: np.ndarray
    drawn: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class _Pool:
    """What is drawn from in each step: images, class numbers, odds; `spread` > 0 stains tiles anew."""

    images: Sequence[np.ndarray]
    classes: np.ndarray
    odds: np.ndarray
    spread: float = 0.0

    def batch_of(self, seed: int) -> Callable[[int], Batch]:
        ends = np.cumsum([len(part) for part in self.images])
        odds = self.odds / self.odds.sum()

        def make(step: int) -> Batch:
            random = np.random.default_rng((seed, step))
            rows = random.choice(len(self.classes), BATCH, p=odds)
            return pixels_of(np.stack([self._tile(row, ends, random) for row in rows])), torch.from_numpy(
                self.classes[rows]
            )

        return make

    def _tile(self, row: int, ends: np.ndarray, random: np.random.Generator) -> np.ndarray:
        part = int(np.searchsorted(ends, row, side="right"))
        return augmented(self.images[part][row - (ends[part - 1] if part else 0)], random, self.spread)


def _pool(arm: str, spread: float | None, trial: Trial, pixels: Pixels, rows: np.ndarray) -> _Pool:
    real, mine = trial.real.classes[rows], pixels.real[rows]
    if arm == "real only":
        return _Pool([mine], real, np.ones(len(rows)))
    if arm == "class weights":
        return _Pool([mine], real, even(real))
    if arm == STAINED:
        return _Pool([mine], real, even(real), spread or 0.0)
    some = trial.drawn_beside(rows)
    drawn, theirs = trial.drawn.classes[some], pixels.drawn[some]
    if arm == SYNTHETIC:
        return _Pool([theirs], drawn, even(drawn))
    classes = np.concatenate([real, drawn])
    return _Pool([mine, theirs], classes, even(classes), spread or 0.0)


STAINED = "oversampled, stained anew"
# Classes count alike wherever real tiles are not taken as they are; True: stains are varied, which may be added to what is drawn as well.
ARMS = {"real only": False, "class weights": False, STAINED: True, SYNTHETIC: False, BOTH: True}
SPREADS = (0.05, 0.1)  # how strongly stains may be varied


def cnn_arms(
    trial: Trial,
    pixels: Pixels,
    seeds: int,
    steps: int,
    tick: Tick = lambda done: None,
    once: Once = lambda key, make: make(),
) -> dict[str, Outcome]:
    """Every arm, `seeds` times. How strongly stains are varied is chosen once a seed, by real tiles alone and over all folds of their
    patients: of few patients one fold says little, and arms that chose apart would differ by more than the tiles that they learn from.
    UnmeasurableError where validation has nobody to judge by.

    `once(key, make)` may keep what a fit gave: minutes that a stop would lose.
    """

    def judged_by(
        arm: str, spread: float | None, taught: np.ndarray, seed: int, images: np.ndarray, part: str
    ) -> np.ndarray:
        """Probabilities (N, classes) of `images` by a network that learnt this arm from the rows `taught`."""

        def make() -> dict[str, Any]:
            batches = _pool(arm, spread, trial, pixels, taught).batch_of(seed + (1000 if part == "test" else 0))
            network = fit_cnn(len(trial.names), batches, steps, seed)
            return {"probabilities": softmax(logits_of(network, images), axis=1).astype(float).tolist()}

        return np.asarray(once((arm, str(spread), str(seed), part), make)["probabilities"])

    everyone = np.arange(len(trial.real))
    probabilities: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    chosen: dict[str, list[Choice]] = {arm: [] for arm in ARMS}
    for seed in range(seeds):
        losses = dict.fromkeys(SPREADS, 0.0)
        parts = _parts(trial, seed)
        for number, (taught, judged) in enumerate(parts):
            for spread in SPREADS:
                guessed = judged_by(
                    STAINED, spread, taught, seed, pixels.real[judged], f"fold {number} of {len(parts)}"
                )
                losses[spread] += balanced_log_loss(guessed, trial.real.classes[judged]) / len(parts)
                tick(1)
        tick((FOLDS - len(parts)) * len(SPREADS))
        best = min(losses, key=losses.__getitem__)
        for arm, stained in ARMS.items():
            choice = Choice(best, float(steps), losses[best]) if stained else Choice(None, float(steps), float("nan"))
            probabilities[arm].append(judged_by(arm, choice.option, everyone, seed, pixels.test, "test"))
            chosen[arm].append(choice)
            tick(1)
    return {arm: Outcome(np.stack(probabilities[arm]), tuple(chosen[arm])) for arm in ARMS}


def _parts(trial: Trial, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(real rows to learn from, rows to judge by) of each fold that has both. UnmeasurableError where none has."""
    parts = [part for part in folds(trial.real.groups, trial.real.classes, seed) if len(part[0]) and len(part[1])]
    if not parts:
        raise UnmeasurableError("validation needs real tiles of two patients of some class")
    return parts


def fits(seeds: int) -> int:
    """How many fits `cnn_arms` tells its `tick` of."""
    return seeds * (FOLDS * len(SPREADS) + len(ARMS))
