"""Gaussian noise of one candidate: a numpy Philox stream keyed by the candidate, so that no batch, worker or order changes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class CandidateNoise:
    """One stream per candidate; each `draw` gives the next (B, *shape) of all of them, float32, on the CPU.

    Philox (Salmon et al., SC 2011) is counter-based: the key alone fixes the stream. The first draw is the starting latent,
    later ones are the increments of a stochastic solver.
    """

    def __init__(self, keys: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.streams = [np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))) for key in keys]

    def draw(self) -> Tensor:
        """The next standard normal numbers of every candidate, (B, *shape)."""
        return torch.from_numpy(np.stack([s.standard_normal(self.shape, np.float32) for s in self.streams]))
