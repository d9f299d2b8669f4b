"""Conditions and noise keys in, uint8 tiles out: one batch at a time on one device.

The same batch (conditions, keys, sampler, padding), threads and software give the same bytes. Batches are padded to a multiple
of four rows, because convolutions of one to three rows take other kernels and round differently.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from synthfactory.model.vae import pixels_to_uint8
from synthfactory.model.weights import LoadedModel
from synthfactory.sample.noise import CandidateNoise
from synthfactory.sample.solvers import guided, integrate, is_guided
from synthfactory.spec.sampler import Sampler

PAD_TO = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Spent:
    """What drawing has cost so far: network calls of one tile each (padding not counted), and seconds per stage."""

    network_calls: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"sample": 0.0, "decode": 0.0})


class Engine:
    """A model on a device. `draw` keeps no state between calls except `spent`."""

    def __init__(self, model: LoadedModel, *, dtype: str = "float32", threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = model
        self.device = model.device
        self.dtype = DTYPES[dtype]
        self.spent = Spent()

    @torch.inference_mode()
    def draw(self, conditions_NE: np.ndarray, keys: Sequence[tuple[int, int]], sampler: Sampler) -> np.ndarray:
        """Tiles uint8 (N, H, W, 3) for conditions float32 (N, E) and one noise key each, all in one batch.

        Raises ValueError where widths or lengths do not fit, FloatingPointError where the network gives NaN or infinity.
        """
        count = len(keys)
        if conditions_NE.shape != (count, self.model.sit.config.condition_width):
            raise ValueError(
                f"conditions are {conditions_NE.shape}; ({count}, {self.model.sit.config.condition_width}) is needed"
            )
        if count == 0:
            size = self.model.tile_size_px
            return np.zeros((0, size, size, 3), np.uint8)
        began = time.perf_counter()
        padding = -count % PAD_TO
        padded_keys = [*keys, *[keys[-1]] * padding]
        conditions = torch.from_numpy(np.concatenate([conditions_NE, np.repeat(conditions_NE[-1:], padding, axis=0)]))
        latents = self._latents(conditions.to(self.device), padded_keys, sampler, count)
        if not torch.isfinite(latents).all():
            raise FloatingPointError("the network gave NaN or infinity; try execution.dtype: float32")
        sampled = time.perf_counter()
        tiles = pixels_to_uint8(self.model.vae.decode(self.model.sit.denormalise(latents)))[:count].cpu().numpy()
        self.spent.seconds["sample"] += sampled - began
        self.spent.seconds["decode"] += time.perf_counter() - sampled
        return tiles

    def _latents(self, conditions: Tensor, keys: Sequence[tuple[int, int]], sampler: Sampler, count: int) -> Tensor:
        config = self.model.sit.config
        noise = CandidateNoise(keys, (config.latent_channels, config.latent_size, config.latent_size))
        rows = len(keys)
        doubled = torch.cat([conditions, conditions])
        is_null = torch.arange(2 * rows, device=self.device) >= rows
        guidance = sampler.guidance

        def velocity(x: Tensor, t: float) -> Tensor:
            both = is_guided(guidance, t)
            self.spent.network_calls += count * (2 if both else 1)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                if not both:
                    alone: Tensor = self.model.sit(x, torch.full((rows,), t, device=self.device), conditions)[0]
                    return alone.float()
                times = torch.full((2 * rows,), t, device=self.device)
                found: Tensor = self.model.sit(torch.cat([x, x]), times, doubled, is_null)[0].float()
            return guided(found[:rows], found[rows:], guidance.scale)

        def fresh() -> Tensor:
            return noise.draw().to(self.device)

        return integrate(sampler, velocity, fresh(), fresh)
