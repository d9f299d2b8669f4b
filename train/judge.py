"""An independent judge of class agreement: a small CNN on pixels, trained on patients that the model never saw.

It shares nothing with the conditioning encoder: other patients, another architecture, another input size (112 px).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.streams import stream
from train.symmetry import transformed


class Judge(nn.Module):
    """Six convolutions on 112-px tiles, then a linear layer on the mean."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        sizes = [(3, width), (width, 2 * width), (2 * width, 3 * width), (3 * width, 4 * width)]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1, groups=4))
            for a, b in sizes
        )
        self.norm = nn.LayerNorm(4 * width)
        self.head = nn.Linear(4 * width, classes)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """float (B, 3, 224, 224) in [0, 1] -> what the classes are read off, (B, 96)."""
        x = F.avg_pool2d(pixels_B3HW, 2) * 4 - 2
        for stage in self.stages:
            x = F.relu(stage(x))
        return self.norm(x.mean((2, 3)))  # type: ignore[no-any-return]

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """float (B, 3, 224, 224) in [0, 1] -> logits (B, classes)."""
        return self.head(self.features(pixels_B3HW))  # type: ignore[no-any-return]


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0


def train_judge(images: np.ndarray, labels: np.ndarray, classes: int, *, steps: int = 600, seed: int = 7) -> Judge:
    """Trains on uint8 (N, H, W, 3) with symmetries and colour jitter (so that stain alone does not decide)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Judge(classes)
    batch = 48
    optimiser = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        random = stream(seed, "judge", step)
        rows = random.integers(0, len(labels), batch)
        turned = np.stack(
            [transformed(images[row], int(s)) for row, s in zip(rows, random.integers(0, 8, batch), strict=True)]
        )
        gain = torch.from_numpy(1 + 0.1 * random.standard_normal((batch, 3, 1, 1))).float()
        loss = F.cross_entropy(judge(_pixels(turned) * gain), torch.from_numpy(labels[rows]), label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def judged(judge: Judge, images: np.ndarray) -> np.ndarray:
    """Predicted class numbers (N,)."""
    found = [judge(_pixels(images[start : start + 64])).argmax(1) for start in range(0, len(images), 64)]
    return np.asarray(torch.cat(found).numpy())


@torch.no_grad()
def judge_features(judge: Judge, images: np.ndarray) -> np.ndarray:
    """float32 (N, 96): a feature space that shares nothing with the conditioning encoder."""
    found = [judge.features(_pixels(images[start : start + 64])) for start in range(0, len(images), 64)]
    return np.asarray(torch.cat(found).numpy())
