"""Randomness as a function of what it is for: a resumed run draws what an undisturbed one would, however many workers share a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator keyed by its arguments."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def torch_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A torch generator keyed by its arguments, for weights at the start."""
    return torch.Generator().manual_seed(int(stream(seed, purpose, *numbers).integers(0, 2**62)))


def normal(seed: int, purpose: str, positions: Sequence[int], shape: Sequence[int]) -> Tensor:
    """float32 (B, *shape) standard normal; row i belongs to the sample at positions[i] of the whole run, whoever works on it."""
    rows = [stream(seed, purpose, position).standard_normal(tuple(shape), dtype=np.float32) for position in positions]
    return torch.from_numpy(np.stack(rows))


def uniform(seed: int, purpose: str, positions: Sequence[int], shape: Sequence[int] = ()) -> np.ndarray:
    """float64 (B, *shape) in [0, 1), as `normal`."""
    return np.stack([np.asarray(stream(seed, purpose, position).random(tuple(shape))) for position in positions])
