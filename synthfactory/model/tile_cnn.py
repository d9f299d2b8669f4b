"""A small convolutional classifier of whole tiles, trained from nothing: what a data set alone teaches, without anybody's encoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, DECAY, SMOOTHING = 3e-3, 0.02, 0.05
Batch = tuple[Tensor, Tensor]  # pixels float (B, 3, H, W) in [0, 1], class numbers int64 (B,)


class TileCNN(nn.Module):
    """Eight convolutions at half the resolution, then a linear layer on the mean."""

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
        """float (B, 3, H, W) in [0, 1] -> what the classes are read off, (B, 96)."""
        x = F.avg_pool2d(pixels_B3HW, 2) * 4 - 2
        for stage in self.stages:
            x = F.relu(stage(x))
        return self.norm(x.mean((2, 3)))  # type: ignore[no-any-return]

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """float (B, 3, H, W) in [0, 1] -> logits (B, classes)."""
        return self.head(self.features(pixels_B3HW))  # type: ignore[no-any-return]


def pixels_of(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0


def fit_cnn(classes: int, batch_of: Callable[[int], Batch], steps: int, seed: int) -> TileCNN:
    """Trains a new network: AdamW, one cycle of rates, label smoothing. `batch_of(step)` gives each step's batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TileCNN(classes)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for step in range(steps):
        pixels, labels = batch_of(step)
        loss = F.cross_entropy(network(pixels), labels, label_smoothing=SMOOTHING)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def logits_of(network: TileCNN, images: np.ndarray) -> np.ndarray:
    """float32 (N, classes) of uint8 (N, H, W, 3)."""
    found = [network(pixels_of(images[start : start + 64])) for start in range(0, len(images), 64)]
    return np.asarray(torch.cat(found).numpy())
