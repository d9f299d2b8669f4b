"""What a training run does, from one YAML file: which network, on which shards, with which losses and for how many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from synthfactory.spec.errors import InputError


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Closed):
    """The tiles to learn from."""

    shards: str = Field(description="folder of WebDataset tars (KEY.png + KEY.json)")
    symmetries: bool = Field(default=True, description="augment with the eight symmetries of the square")


class Optimiser(_Closed):
    """AdamW with warm-up, then a cosine or constant rate; by steps, never by the clock, so that runs repeat."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    rate: float = Field(gt=0)
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1, description="decay of the averaged weights per step")


class EncoderLosses(_Closed):
    """Class and attributes from the class token, local composition from the patch tokens."""

    classes: float = 1.0
    attributes: float = 1.0
    grid: float = 1.0
    label_smoothing: float = 0.05
    photometric: float = Field(
        default=0.08, description="spread of random gain and offset per channel, in [0, 1] units"
    )


class VAELosses(_Closed):
    """Reconstruction in value and gradient at two scales, a weak KL, and equivariance of latents (EQ-VAE, 2502.09509)."""

    crop: int = 112
    l1: float = 1.0
    l2: float = 0.5
    gradient: float = 0.5
    kl: float = 1e-3
    equivariance: float = Field(default=0.5, description="share of batches decoded from transformed latents")


class DiffusionLosses(_Closed):
    """Flow matching, and REPA's alignment to the encoder's patch tokens (arXiv 2410.06940)."""

    alignment: float = 0.5
    null_share: float = Field(default=0.1, description="share of conditions replaced by the null")
    condition_noise: float = Field(default=0.1, description="Gaussian noise on the standardised embedding")
    time: Literal["uniform", "logit_normal"] = "logit_normal"


class TrainConfig(_Closed):
    """One run. `network` is the ViTConfig, VAEConfig or SiTConfig of the mode; `init` names runs or folders it builds on."""

    mode: Literal["encoder", "vae", "diffusion"]
    data: Data
    network: dict[str, Any]
    optimiser: Optimiser
    encoder: EncoderLosses = EncoderLosses()
    vae: VAELosses = VAELosses()
    diffusion: DiffusionLosses = DiffusionLosses()
    encoder_run: str | None = Field(default=None, description="diffusion: run whose averaged encoder conditions")
    vae_run: str | None = Field(default=None, description="diffusion: run whose averaged VAE gives the latents")
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: matrix products under autocast; weights and optimiser stay float32"
    )
    threads: int = Field(default=2, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)
    log_every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _needs(self) -> TrainConfig:
        if self.mode == "diffusion" and not (self.encoder_run and self.vae_run):
            raise ValueError("mode diffusion needs encoder_run and vae_run, the run folders of both")
        return self


def load_config(path: str, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Reads and checks a config; `overrides` maps dotted paths to values. Raises InputError naming file and field."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; name a training config such as train/configs/phantom-sit.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping with mode, data, network and optimiser")
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {dotted}: '{parent}' is a value, not a group of fields")
        place[last] = value
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}" for item in error.errors()]
        raise InputError("\n".join(lines)) from None
