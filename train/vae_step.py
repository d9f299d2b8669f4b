"""A step of mode vae: a crop, encoded and decoded. Randomness is keyed by position in the run, or by step where all tiles share it.

Two updates where there is a discriminator: the autoencoder's, then the discriminator's on the same crops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthfactory.model.vae import VAE, pixels_from_uint8
from train import losses
from train.config import TrainConfig
from train.discriminator import PatchDiscriminator, adaptive_weight, generator_loss
from train.loader import Batch, Loader
from train.parts import VAEParts, vae_parts
from train.perceptual import Features, features_of
from train.place import Figures, Phase, Place, single, wide
from train.redrawn import Redrawing
from train.sizes import check_crop, check_discriminator, check_factor, check_redrawn
from train.streams import normal, stream, torch_generator, uniform
from train.symmetry import turned
from train.team import Team


class VAEModule(nn.Module):
    """What is kept and averaged where there is a discriminator."""

    def __init__(self, vae: VAE, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.vae, self.discriminator = vae, discriminator


class VAEStep:
    """Autoencoder on random crops; in a share of the batches the latents are turned before decoding (EQ-VAE)."""

    by_number = False

    def __init__(self, config: TrainConfig, loader: Loader, team: Team) -> None:
        self.config, self.weights, self.team = config, config.vae, team
        self.place: Place = team.place(config.precision)
        check_crop(config.vae.crop, loader.size_px)
        parts = vae_parts(config, loader)
        self.vae, self._extra = parts.vae.to(self.place.device, self.place.dtype), parts.extra
        self.features: Features | None = features_of(config.vae, parts.encoder, self.place)
        check_factor(config.vae.crop, parts.vae.config.factor)
        self.redraw = self._redrawing(parts, loader.size_px)
        self.module: nn.Module = self.vae
        self.discriminator: PatchDiscriminator | None = None
        if config.vae.gan:
            self.discriminator = PatchDiscriminator(config.vae.discriminator_width, config.vae.discriminator_layers)
            check_discriminator("vae", config.vae.discriminator_layers, config.vae.crop, "a vae.crop")
            self.discriminator.initialise(torch_generator(config.seed, "discriminator"))
            self.module = VAEModule(self.vae, self.discriminator).to(self.place.device, self.place.dtype)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # crops and reconstructions, by the first position of a part

    def _redrawing(self, parts: VAEParts, size_px: int) -> Redrawing | None:
        if self.weights.redrawn is None:
            return None
        assert parts.base is not None
        check_redrawn(self.weights.crop, size_px, encoder=parts.base.encoder is not None)
        return Redrawing(self.weights.redrawn, parts.base, self.place, self.config)

    @property
    def phases(self) -> list[Phase]:
        if self.discriminator is None:
            return single(self.module, self.loss)
        learns = [weight for weight in self.vae.parameters() if weight.requires_grad]
        judging = list(self.discriminator.parameters())
        return [
            Phase("vae", learns, self.loss),
            Phase("discriminator", judging, self.discriminator_loss, opposes=True),
        ]

    def extra(self) -> dict[str, Any]:
        return self._extra

    def drawing(self, state: dict[str, Tensor]) -> None:
        return None

    def _crops(self, batch: Batch) -> Tensor:
        crop, room = self.weights.crop, batch.images.shape[1] - self.weights.crop + 1
        corners = (uniform(self.config.seed, "crop", batch.positions, (2,)) * room).int().tolist()
        crops = [image[y : y + crop, x : x + crop] for image, (y, x) in zip(batch.images, corners, strict=True)]
        pixels = self.place.bring(pixels_from_uint8(torch.from_numpy(np.stack(crops))))
        return pixels.contiguous(memory_format=torch.channels_last)

    def _latents(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """(pixels, latents, mean, log-variance, which are drawn anew) of a batch's crops, turned or not."""
        seed, pixels = self.config.seed, self._crops(batch)
        mean, log_variance = (wide(moment) for moment in self.vae.encode(pixels))
        noise = self.place.bring(normal(seed, "posterior", batch.positions, mean.shape[1:], self.place.device))
        latents, which = mean + noise * (0.5 * log_variance).exp(), None
        if self.redraw is not None and torch.is_grad_enabled():  # validation asks for the tile itself
            latents, which = self.redraw(batch, latents)
        random = stream(seed, "turn", batch.step)  # of the step: the same for every worker
        turn = int(random.integers(1, 8)) if random.random() < self.weights.equivariance else 0
        if turn:
            pixels, latents = turned(pixels, turn), turned(latents, turn)
        return pixels, latents, mean, log_variance, which

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Of the autoencoder. Where no gradient is asked for (in validation), the discriminator has no say; else it has one in the
        gradient alone, so that the loss can be compared over steps, whatever the discriminator learns meanwhile.
        """
        weights = self.weights
        pixels, latents, mean, log_variance, which = self._latents(batch)
        decoded = wide(self.vae.decode(latents))
        found, wanted, alike = decoded, pixels, pixels
        if self.redraw is not None and which is not None:
            found, wanted, alike = self.redraw.compared(decoded, pixels, latents, which)
        l1 = (found - wanted).abs().mean()
        l2 = (found - wanted).square().mean()
        edges = losses.gradient_l1(found, wanted)
        kl = losses.kl_to_unit(mean, log_variance)
        rebuilt = weights.l1 * l1 + weights.l2 * l2 + weights.gradient * edges
        figures = {"l1": l1.item(), "edges": edges.item(), "kl": kl.item()}
        if which is None:
            figures["psnr_db"] = (10 * torch.log10(4.0 / l2.detach())).item()
        if self.features is not None:
            perceptual = self.features(decoded, alike)
            rebuilt = rebuilt + self.features.weight * perceptual
            figures["perceptual"] = perceptual.item()
        if weights.patches:
            random = stream(self.config.seed, "patches", batch.step)
            apart = losses.patches_apart(decoded, pixels, random, weights.patch_scales)
            rebuilt = rebuilt + weights.patches * apart
            figures["patches"] = apart.item()
        total = rebuilt + weights.kl * kl
        if self.discriminator is None or not torch.is_grad_enabled():
            return total, figures
        self._seen[int(batch.positions[0])] = pixels, decoded.detach()
        figures["adversarial"] = figures["pull"] = 0.0
        last = self.vae.kl.decoder.conv_out.weight
        if batch.step >= weights.gan_from and last.requires_grad:
            adversarial = generator_loss(wide(self.discriminator(decoded)))
            pull = adaptive_weight(rebuilt, adversarial, last, self._mean)
            total = total + weights.gan * pull * (adversarial - adversarial.detach())
            figures |= {"adversarial": adversarial.item(), "pull": float(pull)}
        return total, figures

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Of the second update, on what the first has seen and made."""
        assert self.discriminator is not None
        pixels, decoded = self._seen.pop(int(batch.positions[0]))
        real, fake = wide(self.discriminator(pixels)), wide(self.discriminator(decoded))
        loss = self.discriminator.loss(real, fake, self.weights.lecam, self._mean)
        return loss, {"loss": loss.item(), "real": real.mean().item(), "fake": fake.mean().item()}

    def _mean(self, value: Tensor) -> Tensor:
        return self.team.summed(value) / self.team.world
