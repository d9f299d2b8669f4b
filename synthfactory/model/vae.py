"""The autoencoder between pixels and latents: diffusers' AutoencoderKL, f8 with 4 channels, optionally behind a pixel-unshuffle.

With unshuffle u the convolutions run at 1/u of the resolution, which makes a small VAE affordable on a CPU; u = 1 is the plain
SD-VAE form (83.7M parameters at its size). Pixels are float in [-1, 1], (B, 3, H, W); latents (B, C, H/8, W/8).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class VAEConfig(BaseModel):
    """Size and form; the defaults are SD-VAE f8d4."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unshuffle: int = Field(default=1, ge=1, description="pixel-unshuffle in front, pixel-shuffle behind")
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(128, 256, 512, 512), min_length=1)
    layers_per_block: int = Field(default=2, ge=1)
    latent_channels: int = Field(default=4, ge=1)
    norm_groups: int = Field(default=32, ge=1)
    mid_attention: bool = True

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return int(self.unshuffle * 2 ** (len(self.channels) - 1))


def pixels_from_uint8(images_BHW3: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return images_BHW3.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def pixels_to_uint8(pixels_B3HW: Tensor) -> Tensor:
    """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), rounded half up and clipped."""
    scaled = ((pixels_B3HW.float() + 1.0) * 127.5 + 0.5).floor().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class VAE(nn.Module):
    """Encode pixels to the mean and log-variance of latents, decode latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.channels)
        channels = 3 * config.unshuffle**2
        self.kl = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            mid_block_add_attention=config.mid_attention,
        )

    def encode(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1] -> (mean, log-variance), each (B, C, H/f, W/f)."""
        x = F.pixel_unshuffle(pixels_B3HW, self.config.unshuffle) if self.config.unshuffle > 1 else pixels_B3HW
        posterior = self.kl.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents -> pixels in about [-1, 1], (B, 3, H, W)."""
        x = self.kl.decode(latents_BCHW).sample
        return F.pixel_shuffle(x, self.config.unshuffle) if self.config.unshuffle > 1 else x


def vae_from_dict(values: dict[str, Any]) -> VAE:
    """A VAE with initial weights from the `vae` part of a model folder's config.json."""
    return VAE(VAEConfig.model_validate(values))
