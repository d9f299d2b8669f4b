"""What the losses of a mode weigh, as a config writes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthfactory.spec.sampler import FrozenModel
from synthfactory.spec.source import Problems

Time = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[int, Field(ge=1, le=64)]


class EncoderLosses(FrozenModel):
    """Class, attributes and layout from the class token, local composition from the patch tokens."""

    classes: float = Field(default=1.0, ge=0)
    attributes: float = Field(default=1.0, ge=0)
    grid: float = Field(default=1.0, ge=0)
    layout: float = Field(
        default=0.0,
        ge=0,
        description="composition of the tile's four quarters, orientation of fibres included, from the class token",
    )
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    photometric: float = Field(
        default=0.08, ge=0, le=0.5, description="spread of random gain and offset per channel, in [0, 1] units"
    )


class Adversarial(FrozenModel):
    """A patch discriminator that the autoencoder is to deceive."""

    lecam: float = Field(default=0.001, ge=0, description="not stated by REPA-E; taken from LeCAM's range")
    discriminator_width: int = Field(default=64, ge=8, multiple_of=8)
    discriminator_layers: int = Field(default=3, ge=1, le=6)


class Redrawn(FrozenModel):
    """Latents that the base model's SiT draws from a noisy form of the tile's own: what a decoder will be given to decode."""

    share: float = Field(default=0.5, ge=0, le=1, description="of the tiles of a batch")
    start: Annotated[tuple[Time, Time], Field(strict=False)] = Field(
        default=(0.5, 1.0), description="range of the times drawn from; t = 1 is noise alone"
    )
    steps: int = Field(default=4, ge=1, le=100, description="of solver ab2, from there to t = 0")
    scale: float = Field(default=1.5, ge=1, le=100, description="guidance")

    @model_validator(mode="after")
    def _range(self) -> Redrawn:
        if self.start[0] > self.start[1]:
            raise Problems([("start", "runs from the lower time to the higher; for example start: [0.5, 1.0]")])
        return self


class VAELosses(Adversarial):
    """Reconstruction in value and gradient at two scales, a weak KL, and equivariance of latents (EQ-VAE, 2502.09509).

    Perceptual and adversarial losses sharpen what these leave smooth.
    """

    crop: int = Field(default=112, ge=8, description="pixels; a multiple of the autoencoder's factor")
    l1: float = Field(default=1.0, ge=0)
    l2: float = Field(default=0.5, ge=0)
    gradient: float = Field(default=0.5, ge=0)
    kl: float = Field(default=1e-3, ge=0)
    equivariance: float = Field(
        default=0.5, ge=0, le=1, description="share of batches decoded from transformed latents"
    )
    perceptual: float | None = Field(
        default=None, ge=0, description="null: 1 where `base` or `encoder_run` gives an encoder, else none"
    )
    features: Literal["encoder", "lpips"] = Field(
        default="encoder", description="what the perceptual loss compares; lpips needs the extra of that name"
    )
    gan: float = Field(default=0.0, ge=0, description="adversarial loss, as a share of the reconstruction's pull")
    gan_from: int = Field(
        default=0, ge=0, description="steps before it, in which only the discriminator learns from it"
    )
    patches: float = Field(
        default=0.0,
        ge=0,
        description="sliced Wasserstein distance of the patches of a tile and its reconstruction: detail, wherever it stands",
    )
    patch_scales: Annotated[tuple[Scale, ...], Field(strict=False, min_length=1)] = Field(
        default=(1, 2, 4), description="sides of the squares whose means patches are of; from 2 on, grain is no detail"
    )
    redrawn: Redrawn | None = Field(
        default=None, description="mode vae with a base: decode latents as its SiT draws them; crop is the whole tile"
    )

    @model_validator(mode="after")
    def _room(self) -> VAELosses:
        if self.patches and self.crop < 7 * max(self.patch_scales):
            right = [scale for scale in (1, 2, 4) if self.crop >= 7 * scale]
            what = f"of {max(self.patch_scales)} leave no patches in a crop of {self.crop} px; for example patch_scales: {right}"
            raise Problems([("patch_scales", what)])
        return self


class DiffusionLosses(FrozenModel):
    """Flow matching, and REPA's alignment to the encoder's patch tokens (arXiv 2410.06940)."""

    alignment: float = Field(
        default=0.5, ge=0, description="left out in mode finetune, it is 0: where it was tried, drawn tiles got worse"
    )
    null_share: float = Field(default=0.1, ge=0, le=1, description="share of conditions replaced by the null")
    condition_noise: float = Field(default=0.1, ge=0, description="Gaussian noise on the standardised embedding")
    time: Literal["uniform", "logit_normal"] = "logit_normal"
    time_mean: float = Field(
        default=0.0,
        ge=-3,
        le=3,
        description="of logit_normal: above 0, more noise, where the layout of a tile is decided",
    )
    features: Literal["auto", "cache", "encode"] = Field(
        default="auto",
        description="cache: the encoder's tokens of every tile and symmetry are made once and kept; encode: for every batch; auto: "
        "kept where nothing is aligned and it pays",
    )


class RepaELosses(Adversarial):
    """Autoencoder and discriminator of end-to-end training (REPA-E, arXiv 2504.10483); the SiT's are those of `diffusion`."""

    l1: float = Field(default=1.0, ge=0)
    perceptual: float = Field(default=1.0, ge=0)
    features: Literal["encoder", "lpips"] = Field(
        default="encoder",
        description="what the perceptual loss compares: the encoder's patch tokens, by cosine; lpips needs the extra of that name",
    )
    kl: float = Field(default=1e-6, ge=0)
    gan: float = Field(default=0.1, ge=0)
    alignment: float = Field(default=1.5, ge=0)
