"""A step of mode vae: a crop, encoded and decoded. Randomness is keyed by position in the run, or by step where all tiles share it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthfactory.model.vae import pixels_from_uint8, vae_from_dict
from synthfactory.spec.errors import InputError
from train import losses
from train.config import TrainConfig
from train.loader import Batch, Loader
from train.place import Figures, Phase, Place, single, wide
from train.streams import normal, stream, uniform
from train.symmetry import turned


class VAEStep:
    """Autoencoder on random crops; in a share of the batches the latents are turned before decoding (EQ-VAE)."""

    def __init__(self, config: TrainConfig, loader: Loader, place: Place) -> None:
        self.config, self.weights, self.place = config, config.vae, place
        if config.vae.crop > loader.size_px:
            raise InputError(f"vae.crop: {config.vae.crop} px of tiles of {loader.size_px} px; at most that many")
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.vae = vae_from_dict(config.network)
        self.vae.to(place.device, place.dtype)
        self.module: nn.Module = self.vae

    @property
    def phases(self) -> list[Phase]:
        return single(self.module, self.loss)

    def extra(self) -> dict[str, Any]:
        return {}

    def drawing(self, state: dict[str, Tensor]) -> None:
        return None

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        seed, weights, positions = self.config.seed, self.weights, batch.positions.tolist()
        crop, room = weights.crop, batch.images.shape[1] - weights.crop + 1
        corners = (uniform(seed, "crop", positions, (2,)) * room).astype(int)
        crops = [image[y : y + crop, x : x + crop] for image, (y, x) in zip(batch.images, corners, strict=True)]
        pixels = self.place.bring(pixels_from_uint8(torch.from_numpy(np.stack(crops))))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        mean, log_variance = (wide(moment) for moment in self.vae.encode(pixels))
        noise = self.place.bring(normal(seed, "posterior", positions, mean.shape[1:]))
        latents = mean + noise * (0.5 * log_variance).exp()
        random = stream(seed, "turn", batch.step)  # of the step: the same for every worker
        turn = int(random.integers(1, 8)) if random.random() < weights.equivariance else 0
        if turn:
            pixels, latents = turned(pixels, turn), turned(latents, turn)
        decoded = wide(self.vae.decode(latents))
        l1 = (decoded - pixels).abs().mean()
        l2 = (decoded - pixels).square().mean()
        edges = losses.gradient_l1(decoded, pixels)
        kl = losses.kl_to_unit(mean, log_variance)
        total = weights.l1 * l1 + weights.l2 * l2 + weights.gradient * edges + weights.kl * kl
        psnr = (10 * torch.log10(4.0 / l2.detach())).item()
        return total, {"l1": l1.item(), "edges": edges.item(), "kl": kl.item(), "psnr_db": psnr}
