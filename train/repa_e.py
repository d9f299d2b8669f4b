"""A step of mode repa-e: autoencoder and SiT trained together (REPA-E, arXiv 2504.10483), by three updates on one batch.

1. vae            L1 + perceptual + KL + adversarial + alignment: latents are made such that the SiT's features agree with the encoder's.
                  The gradient flows through the SiT, whose weights and BatchNorm statistics stay as they are.
2. discriminator  hinge loss on tiles and their reconstructions.
3. sit            denoising + alignment on the same latents, detached, with the same times and noise. Latents are normalised by the
                  statistics of the batch over all workers (SyncBN), which move the running ones.

The perceptual loss compares the encoder's patch tokens (cosine) of a tile and of its reconstruction, or takes LPIPS.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthfactory.model.interpolant import noised, velocity_target
from synthfactory.model.sit import SiT
from synthfactory.model.vae import VAE, pixels_from_uint8
from synthfactory.model.weights import LoadedModel
from train import losses
from train.config import TrainConfig
from train.discriminator import PatchDiscriminator, adaptive_weight, generator_loss
from train.loader import Batch, Loader
from train.parts import drawing_model, parts_of
from train.perceptual import lpips_of
from train.place import Figures, Phase, wide
from train.sizes import check_discriminator
from train.streams import normal, torch_generator
from train.team import Team

MEASURED = 256  # tiles whose latents give the first statistics


class RepaEModule(nn.Module):
    """What is kept and averaged."""

    def __init__(self, sit: SiT, vae: VAE, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.sit, self.vae, self.discriminator = sit, vae, discriminator


class _Seen:
    """What the first update leaves for the others: nothing of it has a gradient."""

    def __init__(self, latents: Tensor, decoded: Tensor | None, pixels: Tensor, tokens: Tensor) -> None:
        self.latents, self.pixels, self.tokens = latents.detach(), pixels, tokens
        self.decoded = None if decoded is None else decoded.detach()


class RepaEStep:
    """Autoencoder, discriminator and SiT."""

    by_number = False

    def __init__(self, config: TrainConfig, loader: Loader, team: Team, begun: Mapping[str, Any] = {}) -> None:
        self.config, self.team, self.place = config, team, team.place(config.precision)
        self.size_px = loader.size_px
        parts = parts_of(config, loader, begun)
        self.encoder = parts.encoder.to(self.place.device, self.place.dtype)
        discriminator = PatchDiscriminator(config.repa_e.discriminator_width, config.repa_e.discriminator_layers)
        check_discriminator("repa_e", config.repa_e.discriminator_layers, loader.size_px, "a tile of data.shards")
        discriminator.initialise(torch_generator(config.seed, "discriminator"))
        parts.vae.requires_grad_(True)
        by_lpips = config.repa_e.features == "lpips" and config.repa_e.perceptual != 0
        self.lpips = lpips_of(self.place, "repa_e.features") if by_lpips else None
        self.module = RepaEModule(parts.sit, parts.vae, discriminator).to(self.place.device, self.place.dtype)
        self.sit, self.vae, self.discriminator = self.module.sit, self.module.vae, self.module.discriminator
        if parts.fresh:
            self._measure(loader)
        self._extra = parts.extra
        self._seen: dict[int, _Seen] = {}  # by the first position of a part

    def extra(self) -> dict[str, Any]:
        return self._extra

    def drawing(self, state: dict[str, Tensor]) -> LoadedModel:
        module = copy.deepcopy(self.module)
        module.load_state_dict(state)
        return drawing_model(module.sit, module.vae, self.encoder, self.size_px, self.place)

    @property
    def phases(self) -> list[Phase]:
        def learns(module: nn.Module) -> list[nn.Parameter]:
            return [weight for weight in module.parameters() if weight.requires_grad]

        return [
            Phase("vae", learns(self.vae), self.autoencoder_loss),
            Phase("discriminator", learns(self.discriminator), self.discriminator_loss, opposes=True),
            Phase("sit", learns(self.sit), self.diffusion_loss),
        ]

    @torch.no_grad()
    def _measure(self, loader: Loader) -> None:
        """First statistics of latents, into the SiT's BatchNorm."""
        found, rows = [], loader.first_rows(MEASURED)
        for start in range(0, len(rows), 16):
            images = loader.images(rows[start : start + 16])
            mean, log_variance = self.vae.encode(self.place.bring(pixels_from_uint8(torch.from_numpy(images))))
            found.append(torch.stack([mean, (0.5 * log_variance).exp()]))
        mean, spread = torch.cat(found, dim=1)
        bn = self.sit.bn
        assert bn.running_mean is not None and bn.running_var is not None
        bn.running_mean.copy_(mean.mean((0, 2, 3)))
        bn.running_var.copy_(mean.var((0, 2, 3)) + spread.square().mean((0, 2, 3)))

    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pixels, latents, mean, log-variance) of a batch; noise is keyed by position."""
        pixels = self.place.bring(pixels_from_uint8(torch.from_numpy(batch.images)))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        mean, log_variance = (wide(moment) for moment in self.vae.encode(pixels))
        noise = normal(self.config.seed, "posterior", batch.positions, mean.shape[1:], self.place.device)
        return pixels, mean + self.place.bring(noise) * (0.5 * log_variance).exp(), mean, log_variance

    def _mean(self, value: Tensor) -> Tensor:
        return self.team.summed(value) / self.team.world

    def _tokens(self, pixels_B3HW: Tensor) -> Tensor:
        """The encoder's tokens of tiles in [-1, 1]; a gradient flows to the tiles, where they have one."""
        return wide(self.encoder((pixels_B3HW + 1) / 2))

    def autoencoder_loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Of the first update; leaves latents and reconstructions for the others."""
        weights = self.config.repa_e
        pixels, latents, mean, log_variance = self._encoded(batch)
        decoded = wide(self.vae.decode(latents))
        with torch.no_grad():
            tokens = self._tokens(pixels)
        self._seen[int(batch.positions[0])] = _Seen(latents, decoded, pixels, tokens)
        l1 = (decoded - pixels).abs().mean()
        patches = self.encoder.patch_tokens
        if self.lpips is not None:
            perceptual = self.lpips(decoded, pixels)
        else:
            perceptual = 1 - F.cosine_similarity(patches(self._tokens(decoded)), patches(tokens), dim=-1).mean()
        kl = losses.kl_to_unit(mean, log_variance) * mean[0].numel()  # summed over a tile, as the weight is meant
        rebuilt = weights.l1 * l1 + weights.perceptual * perceptual
        adversarial = generator_loss(wide(self.discriminator(decoded)))
        last = self.vae.kl.decoder.conv_out.weight
        pull = adaptive_weight(rebuilt, adversarial, last, self._mean) if last.requires_grad and weights.gan else 0.0
        _, projection, _ = self._predicted(batch, self.sit.normalise(latents), tokens)
        assert projection is not None
        against = losses.alignment(projection, patches(tokens))
        heard = weights.gan * pull * (adversarial - adversarial.detach())  # in the gradient alone: its value jumps
        total = rebuilt + weights.kl * kl + heard + weights.alignment * against
        figures = {"l1": l1.item(), "perceptual": perceptual.item(), "kl": kl.item(), "alignment": against.item()}
        return total, {**figures, "adversarial": adversarial.item(), "pull": float(pull)}

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Of the second update, on what the first has seen and made."""
        seen = self._seen[int(batch.positions[0])]
        assert seen.decoded is not None
        real, fake = wide(self.discriminator(seen.pixels)), wide(self.discriminator(seen.decoded))
        loss = self.discriminator.loss(real, fake, self.config.repa_e.lecam, self._mean)
        return loss, {"loss": loss.item(), "real": real.mean().item(), "fake": fake.mean().item()}

    def diffusion_loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        """Of the third update, on the first one's latents, detached; alone (in validation) it makes its own."""
        seen = self._seen.pop(int(batch.positions[0]), None)
        if seen is None:
            with torch.no_grad():
                pixels, latents, _, _ = self._encoded(batch)
                seen = _Seen(latents, None, pixels, self._tokens(pixels))
        latents = self._normalised(seen.latents) if self.sit.training else self.sit.normalise(seen.latents)
        velocity, projection, noise = self._predicted(batch, latents, seen.tokens)
        flow = F.mse_loss(velocity, velocity_target(latents, noise))
        assert projection is not None
        against = losses.alignment(projection, self.encoder.patch_tokens(seen.tokens))
        total = flow + self.config.diffusion.alignment * against
        return total, {"flow": flow.item(), "alignment": against.item()}

    def _predicted(self, batch: Batch, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(velocity, projection, noise) at the batch's times: the same in both updates that ask, as all is keyed by position."""
        weights, condition = self.config.diffusion, self.encoder.class_token(tokens)
        shapes = condition.shape[1], latents.shape[1:]
        drawn = losses.draws(self.config.seed, batch.positions, *shapes, weights, self.place)
        condition = condition + weights.condition_noise * (drawn.jitter * self.sit.config.condition_std)
        velocity, projection = self.sit(
            noised(latents, drawn.noise, drawn.t), drawn.t, condition, drawn.is_null, project=True
        )
        return wide(velocity), None if projection is None else wide(projection), drawn.noise

    def _normalised(self, latents_BCHW: Tensor) -> Tensor:
        """Latents by the statistics of the whole batch, over all workers; the running ones move by BatchNorm's momentum."""
        bn = self.sit.bn
        assert bn.running_mean is not None and bn.running_var is not None and bn.momentum is not None
        count = latents_BCHW.numel() / latents_BCHW.shape[1] * self.team.world
        with torch.no_grad():
            mean = self.team.summed(latents_BCHW.sum((0, 2, 3))) / count
            off = latents_BCHW - mean.reshape(1, -1, 1, 1)
            variance = self.team.summed(off.square().sum((0, 2, 3))) / count
            bn.running_mean.lerp_(mean, bn.momentum)
            bn.running_var.lerp_(variance * count / max(count - 1, 1), bn.momentum)
        return (latents_BCHW - mean.reshape(1, -1, 1, 1)) / (variance + bn.eps).sqrt().reshape(1, -1, 1, 1)
