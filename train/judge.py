"""An independent judge of class agreement: a small CNN on pixels, trained on patients that the model never saw.

It shares nothing with the conditioning encoder: other patients, another architecture, another input size (112 px).
"""

from __future__ import annotations

import numpy as np
import torch

from synthfactory.model.tile_cnn import Batch, TileCNN, fit_cnn, logits_of, pixels_of
from train.streams import stream
from train.symmetry import transformed

BATCH = 48


def train_judge(images: np.ndarray, labels: np.ndarray, classes: int, *, steps: int = 600, seed: int = 7) -> TileCNN:
    """Trains on uint8 (N, H, W, 3) with symmetries and colour jitter (so that stain alone does not decide)."""

    def batch_of(step: int) -> Batch:
        random = stream(seed, "judge", step)
        rows = random.integers(0, len(labels), BATCH)
        turned = np.stack(
            [transformed(images[row], int(s)) for row, s in zip(rows, random.integers(0, 8, BATCH), strict=True)]
        )
        gain = torch.from_numpy(1 + 0.1 * random.standard_normal((BATCH, 3, 1, 1))).float()
        return pixels_of(turned) * gain, torch.from_numpy(labels[rows])

    return fit_cnn(classes, batch_of, steps, seed)


def judged(judge: TileCNN, images: np.ndarray) -> np.ndarray:
    """Predicted class numbers (N,)."""
    return np.asarray(logits_of(judge, images).argmax(axis=1))


@torch.no_grad()
def judge_features(judge: TileCNN, images: np.ndarray) -> np.ndarray:
    """float32 (N, 96): a feature space that shares nothing with the conditioning encoder."""
    found = [judge.features(pixels_of(images[start : start + 64])) for start in range(0, len(images), 64)]
    return np.asarray(torch.cat(found).numpy())
