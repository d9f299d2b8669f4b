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
from train.arrays import at_once, batches, kept
from train.config import TrainConfig
from train.encoder_step import EncoderStep
from train.features import Tokens
from train.loader import Batch, Loader
from train.parts import Parts, drawing_model, parts_of
from train.place import Figures, Phase, Place, Rows, Step, single, wide
from train.repa_e import RepaEStep
from train.streams import normal
from train.symmetry import turned_each
from train.team import Team
from train.vae_step import VAEStep


class DiffusionStep:
    """Flow matching on cached latents, conditioned on the encoder's class token, aligned to its patch tokens.

    With a guide the figure `flow` is the distance to the guided velocity, not to the data's own: not to be compared with other runs.
    """

    def __init__(
        self, config: TrainConfig, loader: Loader, cache: Path, place: Place, begun: Mapping[str, Any] = {}
    ) -> None:
        self.config, self.index, self.weights, self.place = config, loader.index, config.diffusion, place
        parts = parts_of(config, loader, begun)
        self.encoder = parts.encoder.to(place.device, place.dtype)
        self.vae, self.size_px = parts.vae, loader.size_px
        self.latents = Rows(self._latents(parts, loader, cache), place)
        self.sit = parts.sit
        if parts.fresh:
            self._measure(loader.first_rows(2048))
        self.sit.to(place.device, place.dtype)
        self.guide = parts.guide and parts.guide.to(place)
        self.aligned = self.weights.alignment > 0 and self.sit.config.projection_depth is not None
        self.tokens = Tokens(config, self.encoder, loader, cache, place, aligned=self.aligned)
        loader.decodes = not self.tokens.kept
        loader.also = None if self.latents.at_hand else self._read
        self.by_number = self.latents.at_hand and self.tokens.at_hand
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
        sample = torch.from_numpy(np.asarray(self.latents.array[rows], np.float32))
        mean, spread = sample[:, 0], sample[:, 1]
        bn = self.sit.bn
        assert bn.running_mean is not None and bn.running_var is not None
        bn.running_mean.copy_(mean.mean((0, 2, 3)))
        bn.running_var.copy_(mean.var((0, 2, 3)) + spread.square().mean((0, 2, 3)))

    def _latents(self, parts: Parts, loader: Loader, cache: Path) -> np.ndarray:
        """float16 (N, 2, C, H, W): means and deviations of every tile, made once and mapped."""
        vae, count, block = parts.vae.to(self.place.device), len(self.index), at_once(self.place.device)

        @torch.no_grad()
        def made(first: int) -> Iterator[list[np.ndarray]]:
            for rows in batches(first, count, "latents", block):
                images = self.place.bring(loader.images(rows))
                mean, log_variance = vae.encode(pixels_from_uint8(images))
                yield [torch.stack([mean, (0.5 * log_variance).exp()], dim=1).half().cpu().numpy()]

        return kept([cache / f"latents-{self.index.digest[:12]}-{parts.vae_sha256[:12]}.npy"], count, block, made)[0]

    def _read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Posteriors of these tiles' latents: read in the loader's threads, ahead of the step."""
        return {"posterior": self.latents.array[rows]}

    def _clean(self, batch: Batch) -> Tensor:
        """Latents (B, C, H, W) of a batch: a draw of each tile's posterior, under the batch's symmetries."""
        at_hand, bring = self.latents.at_hand, self.place.bring
        stored = self.latents.of(batch.rows) if at_hand else bring(batch.also["posterior"])
        mean, deviation = turned_each(stored.flatten(1, 2), bring(batch.symmetries)).reshape(stored.shape).unbind(1)
        deviates = normal(self.config.seed, "posterior", batch.positions, mean.shape[1:], self.place.device)
        return mean + deviation * bring(deviates)

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        weights, sit = self.weights, self.sit
        condition, patches = self.tokens.of(batch)
        latents = sit.normalise(self._clean(batch))
        shapes = condition.shape[1], latents.shape[1:]
        drawn = losses.draws(self.config.seed, batch.positions, *shapes, weights, self.place)
        condition = condition + weights.condition_noise * (drawn.jitter * sit.config.condition_std)
        noisy = noised(latents, drawn.noise, drawn.t)
        velocity, projection = sit(noisy, drawn.t, condition, drawn.is_null, project=self.aligned)
        if self.guide is None:
            wanted = velocity_target(latents, drawn.noise)
        else:
            wanted = self.guide.velocity(noisy, drawn.t, condition, drawn.is_null)
        flow = F.mse_loss(wide(velocity), wanted)
        figures = {"flow": flow.detach()}
        if projection is None or patches is None:
            return flow, figures
        against = losses.alignment(wide(projection), patches)
        figures["alignment"] = against.detach()
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
