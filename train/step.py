"""A step of modes diffusion and finetune, and the choice between all modes. Randomness is keyed by position in the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthfactory.model.interpolant import noised, velocity_target
from synthfactory.model.vae import pixels_from_uint8
from synthfactory.model.weights import LoadedModel
from train import losses
from train.arrays import AT_ONCE, batches, kept
from train.config import TrainConfig
from train.encoder_step import EncoderStep
from train.features import Tokens
from train.loader import Batch, Loader
from train.parts import Parts, drawing_model, parts_of
from train.place import Figures, Phase, Place, Step, single, wide
from train.repa_e import RepaEStep
from train.streams import normal, uniform
from train.symmetry import transformed
from train.team import Team
from train.vae_step import VAEStep


class DiffusionStep:
    """Flow matching on cached latents, conditioned on the encoder's class token, aligned to its patch tokens."""

    def __init__(
        self, config: TrainConfig, loader: Loader, cache: Path, place: Place, begun: Mapping[str, Any] = {}
    ) -> None:
        self.config, self.index, self.weights, self.place = config, loader.index, config.diffusion, place
        parts = parts_of(config, loader, begun)
        self.encoder = parts.encoder.to(place.device, place.dtype)
        self.vae, self.size_px = parts.vae, loader.size_px
        self.latents = self._latents(parts, loader, cache)
        self.sit = parts.sit
        if parts.fresh:
            self._measure(loader.first_rows(2048))
        self.sit.to(place.device, place.dtype)
        self.aligned = self.weights.alignment > 0 and self.sit.config.projection_depth is not None
        self.tokens = Tokens(config, self.encoder, loader, cache, place, aligned=self.aligned)
        loader.decodes = not self.tokens.kept
        self.module: nn.Module = self.sit
        self._extra = parts.extra

    @property
    def phases(self) -> list[Phase]:
        return single(self.module, self.loss)

    def extra(self) -> dict[str, Any]:
        return self._extra

    def drawing(self, state: dict[str, Tensor]) -> LoadedModel:
        sit = copy.deepcopy(self.sit)
        sit.load_state_dict(state)
        return drawing_model(sit, copy.deepcopy(self.vae), self.encoder, self.size_px, self.place)

    def _measure(self, rows: np.ndarray) -> None:
        """Mean and variance of each latent channel, of these tiles' posteriors, into the SiT's BatchNorm."""
        sample = torch.from_numpy(np.asarray(self.latents[rows], np.float32))
        mean, spread = sample[:, 0], sample[:, 1]
        bn = self.sit.bn
        assert bn.running_mean is not None and bn.running_var is not None
        bn.running_mean.copy_(mean.mean((0, 2, 3)))
        bn.running_var.copy_(mean.var((0, 2, 3)) + spread.square().mean((0, 2, 3)))

    def _latents(self, parts: Parts, loader: Loader, cache: Path) -> np.ndarray:
        """float16 (N, 2, C, H, W): means and deviations of every tile, made once and mapped."""
        vae, count = parts.vae.to(self.place.device), len(self.index)

        @torch.no_grad()
        def made(first: int) -> Iterator[list[np.ndarray]]:
            for start in batches(first, count, "latents"):
                images = torch.from_numpy(loader.images(np.arange(start, min(start + AT_ONCE, count))))
                mean, log_variance = vae.encode(pixels_from_uint8(images).to(self.place.device))
                yield [torch.stack([mean, (0.5 * log_variance).exp()], dim=1).half().cpu().numpy()]

        return kept([cache / f"latents-{self.index.digest[:12]}-{parts.vae_sha256[:12]}.npy"], count, AT_ONCE, made)[0]

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        seed, weights, positions = self.config.seed, self.weights, batch.positions.tolist()
        stored = [
            transformed(self.latents[row], int(s), rows=2) for row, s in zip(batch.rows, batch.symmetries, strict=True)
        ]
        bring = self.place.bring
        posterior = bring(np.ascontiguousarray(np.stack(stored)))
        condition, patches = self.tokens.of(batch)
        shape = posterior.shape[2:]
        latents = posterior[:, 0] + posterior[:, 1] * bring(normal(seed, "posterior", positions, shape))
        latents = self.sit.normalise(latents)
        jitter = bring(normal(seed, "jitter", positions, condition.shape[1:])) * self.sit.config.condition_std
        condition = condition + weights.condition_noise * jitter
        noise = bring(normal(seed, "noise", positions, shape))
        t = losses.times(seed, positions, weights, bring)
        is_null = bring(uniform(seed, "null", positions) < weights.null_share)
        velocity, projection = self.sit(noised(latents, noise, t), t, condition, is_null, project=self.aligned)
        flow = F.mse_loss(wide(velocity), velocity_target(latents, noise))
        figures = {"flow": flow.item()}
        if projection is None or patches is None:
            return flow, figures
        against = losses.alignment(wide(projection), patches)
        figures["alignment"] = against.item()
        return flow + weights.alignment * against, figures


def step_for(config: TrainConfig, loader: Loader, cache: Path, team: Team, begun: Mapping[str, Any] = {}) -> Step:
    """The step object of the config's mode, on the team's device. `begun`: what a run that goes on noted when it was begun."""
    place = team.place(config.precision)
    if config.mode == "encoder":
        return EncoderStep(config, loader, place)
    if config.mode == "vae":
        return VAEStep(config, loader, team)
    if config.mode == "repa-e":
        return RepaEStep(config, loader, team, begun)
    return DiffusionStep(config, loader, cache, place, begun)
