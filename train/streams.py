"""Randomness as a function of what it is for: a resumed run draws what an undisturbed one would, however many workers share a batch.

`stream` is a generator of numpy's. What every sample of a batch needs is drawn for all of them at once, on the device that uses it, by
Philox4x32-10 (Salmon et al., SC 2011): a word is a function of a key, here (seed, purpose), and of a counter, here (position, place in
the sample). Its integers are the same everywhere; logarithms and cosines round as the device does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")
LOW = 0xFFFFFFFF
MULTIPLIERS, WEYL, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator keyed by its arguments."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, purpose, *numbers)))


def torch_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A torch generator keyed by its arguments, for weights at the start."""
    return torch.Generator().manual_seed(int(stream(seed, purpose, *numbers).integers(0, 2**62)))


def normal(
    seed: int,
    purpose: str,
    positions: Sequence[int] | np.ndarray | Tensor,
    shape: Sequence[int],
    device: torch.device = CPU,
) -> Tensor:
    """float32 (B, *shape) standard normal; row i belongs to the sample at positions[i] of the whole run, whoever works on it."""
    count = math.prod(shape)
    one, other, third, fourth = _words(seed, purpose, positions, -(-count // 4), device).unbind(-1)
    found = torch.stack([*_pair(one, other), *_pair(third, fourth)], dim=-1)
    return found.flatten(1)[:, :count].reshape(len(positions), *shape)


def uniform(
    seed: int,
    purpose: str,
    positions: Sequence[int] | np.ndarray | Tensor,
    shape: Sequence[int] = (),
    device: torch.device = CPU,
) -> Tensor:
    """float64 (B, *shape) in [0, 1), as `normal`."""
    count = math.prod(shape)
    words = _words(seed, purpose, positions, -(-count // 2), device).reshape(len(positions), -1, 2)
    found = ((words[..., 0] >> 5) * 2**26 + (words[..., 1] >> 6)).double() * 2.0**-53  # 53 bits
    return found[:, :count].reshape(len(positions), *shape)


def philox(counter_N4: Tensor, key: tuple[int, int]) -> Tensor:
    """int64 (N, 4), words of 32 bits: Philox4x32-10 of counters and a key, words of 32 bits as well."""
    c0, c1, c2, c3 = counter_N4.unbind(-1)
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product of 64 bits wraps into the sign; shifted and cut, its halves are those of the unsigned one.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((second >> 32) & LOW) ^ c1 ^ k0, second & LOW
        c2, c3 = ((first >> 32) & LOW) ^ c3 ^ k1, first & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _digest(seed: int, purpose: str, *numbers: int) -> np.ndarray:
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint64)


def _words(
    seed: int, purpose: str, positions: Sequence[int] | np.ndarray | Tensor, blocks: int, device: torch.device
) -> Tensor:
    """int64 (B, blocks, 4): words of 32 bits, of each position."""
    key = int(_digest(seed, purpose)[0])
    given = positions if isinstance(positions, Tensor) else torch.from_numpy(np.asarray(positions, np.int64))
    at = given.to(device, non_blocking=True)[:, None].expand(-1, blocks)
    place = torch.arange(blocks, device=device)[None].expand(len(positions), -1)
    counter = torch.stack([place, torch.zeros_like(place), at & LOW, (at >> 32) & LOW], dim=-1)
    return philox(counter, (key & LOW, key >> 32))


def _pair(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals, float32, of two words each (Box and Muller 1958); 24 bits of the radius's word count, up to 5.8."""
    far = (((one >> 8) + 1).float() * 2.0**-24).log_().mul_(-2).sqrt_()
    angle = other.float() * (2 * math.pi * 2.0**-32)
    return far * angle.cos(), far * angle.sin()
