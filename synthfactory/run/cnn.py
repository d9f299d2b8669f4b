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
from synthfactory.evaluate.probes import Choice, balanced_log_loss, folds
from synthfactory.evaluate.utility import BOTH, SYNTHETIC, Outcome, Trial, even
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


def _pool(arm: str, option: Any, trial: Trial, pixels: Pixels, rows: np.ndarray) -> _Pool:
    real, mine = trial.real.classes[rows], pixels.real[rows]
    if arm == "real only":
        return _Pool([mine], real, np.ones(len(rows)))
    if arm == "class weights":
        return _Pool([mine], real, even(real))
    if arm == "oversampled, stained anew":
        return _Pool([mine], real, even(real), option)
    some = trial.drawn_beside(rows)
    drawn, theirs = trial.drawn.classes[some], pixels.drawn[some]
    if arm == SYNTHETIC:
        return _Pool([theirs], drawn, even(drawn))
    classes = np.concatenate([real, drawn])
    return _Pool([mine, theirs], classes, even(classes), option)


# How strongly stains are varied, where they are; classes count alike wherever real tiles are not taken as they are.
ARMS: dict[str, tuple[Any, ...]] = {
    "real only": (None,),
    "class weights": (None,),
    "oversampled, stained anew": (0.05, 0.1),
    SYNTHETIC: (None,),
    BOTH: (0.0, 0.1),  # what is free may be added to what is drawn
}


def cnn_arms(
    trial: Trial,
    pixels: Pixels,
    seeds: int,
    steps: int,
    tick: Tick = lambda done: None,
    once: Once = lambda key, make: make(),
) -> dict[str, Outcome]:
    """Every arm, `seeds` times. Where an arm has options, one fold of the real training patients chooses; as with probes, not for drawn
    tiles of which it is not known whom they rest on. UnmeasurableError where a fold has nobody to judge by.

    `once(key, make)` may keep what a fit gave: minutes that a stop would lose.
    """

    def judged_by(arm: str, option: Any, taught: np.ndarray, seed: int, images: np.ndarray, part: str) -> np.ndarray:
        """Probabilities (N, classes) of `images` by a network that learnt this arm from the rows `taught`."""

        def make() -> dict[str, Any]:
            batches = _pool(arm, option, trial, pixels, taught).batch_of(seed + (1000 if part == "test" else 0))
            network = fit_cnn(len(trial.names), batches, steps, seed)
            return {"probabilities": softmax(logits_of(network, images), axis=1).astype(float).tolist()}

        return np.asarray(once((arm, str(option), str(seed), part), make)["probabilities"])

    found = {}
    for arm, options in ARMS.items():
        probabilities, chosen = [], []
        for seed in range(seeds):
            best = Choice(options[0], float(steps), float("nan"))
            if len(options) > 1 and not (arm == BOTH and trial.sources is None):
                taught, judged = _fold(trial, seed)
                for option in options:
                    guessed = judged_by(arm, option, taught, seed, pixels.real[judged], "fold")
                    loss = balanced_log_loss(guessed, trial.real.classes[judged])
                    if not best.loss <= loss:
                        best = Choice(option, float(steps), loss)
                    tick(1)
            everyone = np.arange(len(trial.real))
            probabilities.append(judged_by(arm, best.option, everyone, seed, pixels.test, "test"))
            chosen.append(best)
            tick(1)
        found[arm] = Outcome(np.stack(probabilities), tuple(chosen))
    return found


def _fold(trial: Trial, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(real rows to learn from, rows to judge by). UnmeasurableError where validation has nobody."""
    parts = [part for part in folds(trial.real.groups, trial.real.classes, seed) if len(part[0]) and len(part[1])]
    if not parts:
        raise UnmeasurableError("validation needs real tiles of two patients of some class")
    return parts[0]


def fits(seeds: int) -> int:
    """How often `cnn_arms` calls its `tick`."""
    return seeds * sum(1 + len(options) * (len(options) > 1) for options in ARMS.values())
