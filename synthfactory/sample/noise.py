"""Gaussian noise of one candidate: a numpy Philox stream keyed by the candidate, so that no batch, worker or order changes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# How torch's Mersenne Twister keeps its state: seed, counters, then the words, 8 bytes each. A seed of 0 begins with SEED_0.
STATE_BYTES, WORDS_AT, WORDS = 5056, 24, 624
SEED_0 = [0, 1, 1812433255]


def mersenne(key: tuple[int, int]) -> torch.Generator:
    """torch's generator of the CPU with its whole state (624 words) drawn from the candidate's key.

    `manual_seed` would take the lower 32 bits of a seed alone: a secret key could then be found by trying them all. RuntimeError where
    this version of torch keeps its state in another form.
    """
    generator = torch.Generator()
    generator.manual_seed(0)
    state = generator.get_state().numpy().copy()
    words = state[WORDS_AT : WORDS_AT + 8 * WORDS].view(np.uint64)
    if len(state) != STATE_BYTES or words[:3].tolist() != SEED_0:
        raise RuntimeError(f"torch {torch.__version__}: the state of its generator has another form than is known here")
    drawn = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))).integers(0, 1 << 32, WORDS, np.uint64)
    drawn[0] |= np.uint64(1 << 31)  # a state of zeros alone would stay so
    words[:] = drawn
    generator.set_state(torch.from_numpy(state))
    return generator


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
