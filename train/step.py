"""One training step of each mode: which rows and noise, and the loss. All randomness comes from (seed, step).

Each class offers `module` (what is trained), `loss(step)` -> (scalar, figures) and `extra()` -> config for the export.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthfactory.model.interpolant import noised, velocity_target
from synthfactory.model.sit import SiT, sit_from_dict
from synthfactory.model.vae import pixels_from_uint8, vae_from_dict
from synthfactory.model.vit import images_to_tensor, vit_from_dict
from train import losses
from train.checkpoint import load_average
from train.config import TrainConfig, load_config
from train.data import Tiles, batch_rows, stream, symmetry_of, transformed, transformed_grid

Figures = dict[str, float]


class Step(Protocol):
    """What the loop needs of a mode."""

    @property
    def module(self) -> nn.Module: ...

    def loss(self, step: int) -> tuple[Tensor, Figures]: ...

    def extra(self) -> dict[str, Any]: ...


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(stream(seed, purpose).integers(0, 2**62)))


def _images(tiles: Tiles, rows: np.ndarray, symmetries: np.ndarray) -> np.ndarray:
    picked = [transformed(tiles.images[row], int(s)) for row, s in zip(rows, symmetries, strict=True)]
    return np.ascontiguousarray(np.stack(picked))


class EncoderModule(nn.Module):
    """The ViT and the three heads that are thrown away after training."""

    def __init__(self, network: dict[str, Any], classes: int, attributes: int, grid_channels: int) -> None:
        super().__init__()
        self.vit = vit_from_dict(network)
        width = self.vit.config.width
        self.class_head = nn.Linear(width, classes)
        self.attribute_head = nn.Linear(width, max(attributes, 1))
        self.grid_head = nn.Linear(width, max(grid_channels, 1))


class EncoderStep:
    """Supervised encoder: class and attributes from the class token, local composition from the patch tokens."""

    def __init__(self, config: TrainConfig, tiles: Tiles) -> None:
        self.config, self.tiles, self.weights = config, tiles, config.encoder
        self.module = EncoderModule(
            config.network, len(tiles.classes), tiles.attributes.shape[1], len(tiles.grid_channels)
        )
        generator = _generator(config.seed, "encoder")
        self.module.vit.initialise(generator)
        for head in (self.module.class_head, self.module.attribute_head, self.module.grid_head):
            head.weight.data.normal_(0.0, 0.02, generator=generator)
            head.bias.data.zero_()
        self.attribute_mean, self.attribute_std = _standard(tiles.attributes, (0,))
        if tiles.grid_channels:
            self.grid_mean, self.grid_std = _standard(tiles.grid, (0, 1, 2))

    def extra(self) -> dict[str, Any]:
        return {}

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        config, tiles, weights = self.config, self.tiles, self.weights
        batch = config.optimiser.batch
        rows = batch_rows(config.seed, step, batch, len(tiles))
        symmetries = symmetry_of(config.seed, step, batch, config.data.symmetries)
        pixels = images_to_tensor(_images(tiles, rows, symmetries))
        random = stream(config.seed, "photometric", step)
        spread = weights.photometric
        gain = torch.from_numpy(1 + spread * random.standard_normal((batch, 3, 1, 1))).float()
        offset = torch.from_numpy(spread / 2 * random.standard_normal((batch, 3, 1, 1))).float()
        soften = torch.from_numpy(random.uniform(0, 1, (batch, 1, 1, 1))).float() ** 2
        pixels = torch.lerp(pixels, F.avg_pool2d(pixels, 3, 1, 1), soften)
        tokens = self.module.vit((pixels * gain + offset).clamp(0, 1))
        summary = self.module.vit.class_token(tokens)
        logits = self.module.class_head(summary).float()
        labels = torch.from_numpy(tiles.labels[rows])
        by_class = F.cross_entropy(logits, labels, label_smoothing=weights.label_smoothing)
        total = weights.classes * by_class
        figures = {"classes": by_class.item(), "accuracy": (logits.argmax(1) == labels).float().mean().item()}
        if tiles.attributes.shape[1]:
            wanted = torch.from_numpy((tiles.attributes[rows] - self.attribute_mean) / self.attribute_std)
            by_attribute = F.smooth_l1_loss(self.module.attribute_head(summary).float(), wanted)
            total = total + weights.attributes * by_attribute
            figures["attributes"] = by_attribute.item()
        if tiles.grid_channels:
            grids = [
                transformed_grid(tiles.grid[row], int(s), tiles.grid_channels)
                for row, s in zip(rows, symmetries, strict=True)
            ]
            local = (np.stack(grids) - self.grid_mean) / self.grid_std
            found = self.module.grid_head(self.module.vit.patch_tokens(tokens)).float()
            by_grid = F.smooth_l1_loss(found, torch.from_numpy(local.reshape(batch, -1, local.shape[-1])).float())
            total = total + weights.grid * by_grid
            figures["grid"] = by_grid.item()
        return total, figures


def _standard(values: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axes, dtype=np.float64).astype(np.float32), (values.std(axes, dtype=np.float64) + 1e-3).astype(
        np.float32
    )


class VAEStep:
    """Autoencoder on random crops; in a share of the batches the latents are turned before decoding (EQ-VAE)."""

    def __init__(self, config: TrainConfig, tiles: Tiles) -> None:
        self.config, self.tiles, self.weights = config, tiles, config.vae
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.vae = vae_from_dict(config.network)
        self.module: nn.Module = self.vae

    def extra(self) -> dict[str, Any]:
        return {}

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        config, weights = self.config, self.weights
        batch, crop = config.optimiser.batch, weights.crop
        rows = batch_rows(config.seed, step, batch, len(self.tiles))
        random = stream(config.seed, "crop", step)
        corners = random.integers(0, self.tiles.images.shape[1] - crop + 1, (batch, 2))
        symmetries = symmetry_of(config.seed, step, batch, config.data.symmetries)
        crops = np.stack(
            [
                transformed(self.tiles.images[row, y : y + crop, x : x + crop], int(s))
                for row, (y, x), s in zip(rows, corners, symmetries, strict=True)
            ]
        )
        pixels = pixels_from_uint8(torch.from_numpy(np.ascontiguousarray(crops)))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        mean, log_variance = (moment.float() for moment in self.vae.encode(pixels))
        noise = torch.randn(mean.shape, generator=_generator(config.seed, f"posterior:{step}"))
        latents = mean + noise * (0.5 * log_variance).exp()
        turn = int(random.integers(1, 8)) if random.random() < weights.equivariance else 0
        if turn:
            pixels, latents = _turned(pixels, turn), _turned(latents, turn)
        decoded = self.vae.decode(latents).float()
        l1 = (decoded - pixels).abs().mean()
        l2 = (decoded - pixels).square().mean()
        edges = losses.gradient_l1(decoded, pixels)
        kl = losses.kl_to_unit(mean, log_variance)
        total = weights.l1 * l1 + weights.l2 * l2 + weights.gradient * edges + weights.kl * kl
        psnr = (10 * torch.log10(4.0 / l2.detach())).item()
        return total, {"l1": l1.item(), "edges": edges.item(), "kl": kl.item(), "psnr_db": psnr}


def _turned(x_BCHW: Tensor, symmetry: int) -> Tensor:
    turned = torch.rot90(x_BCHW, symmetry % 4, (2, 3))
    return torch.flip(turned, (3,)) if symmetry >= 4 else turned


class DiffusionStep:
    """Flow matching on cached latents, conditioned on the encoder's class token, aligned to its patch tokens."""

    def __init__(self, config: TrainConfig, tiles: Tiles, cache: Path) -> None:
        assert config.encoder_run and config.vae_run
        self.config, self.tiles, self.weights = config, tiles, config.diffusion
        encoder_config = load_config(f"{config.encoder_run}/config.yaml")
        encoder = EncoderModule(
            encoder_config.network, len(tiles.classes), tiles.attributes.shape[1], len(tiles.grid_channels)
        )
        at_encoder = load_average(config.encoder_run, encoder)
        self.encoder = encoder.vit.eval().requires_grad_(False)
        at_vae, self.latents, statistics = self._latents(cache)
        with torch.no_grad():
            embeddings = self.encoder.embed(np.array(tiles.images[: min(512, len(tiles))]))
        network = {
            **config.network,
            "condition_width": self.encoder.config.width,
            "condition_mean": round(float(embeddings.mean()), 4),
            "condition_std": round(float(embeddings.std()), 4),
            "projection_width": self.encoder.config.width,
        }
        self.sit: SiT = sit_from_dict(network)
        self.sit.initialise(_generator(config.seed, "sit"))
        assert self.sit.bn.running_mean is not None and self.sit.bn.running_var is not None
        self.sit.bn.running_mean.copy_(statistics[0])
        self.sit.bn.running_var.copy_(statistics[1])
        self.module: nn.Module = self.sit
        self._extra = {"network": network, "encoder_step": at_encoder, "vae_step": at_vae}

    def extra(self) -> dict[str, Any]:
        return self._extra

    def _latents(self, cache: Path) -> tuple[int, np.ndarray, Tensor]:
        """(VAE step, latents float16 (N, 2, C, H, W) of means and deviations, channel mean and variance (2, C))."""
        assert self.config.vae_run
        vae = vae_from_dict(load_config(f"{self.config.vae_run}/config.yaml").network)
        step = load_average(self.config.vae_run, vae)
        vae.eval().requires_grad_(False)
        path = cache / f"latents-{self.tiles.digest[:12]}-{step:06d}.npy"
        if not path.exists():
            found = []
            with torch.no_grad():
                for start in range(0, len(self.tiles), 16):
                    images = torch.from_numpy(np.array(self.tiles.images[start : start + 16]))
                    mean, log_variance = vae.encode(pixels_from_uint8(images))
                    found.append(torch.stack([mean, (0.5 * log_variance).exp()], dim=1).half().numpy())
            temporary = path.with_name(".tmp-" + path.name)
            np.save(temporary, np.concatenate(found))
            temporary.rename(path)
        latents = np.load(path, mmap_mode="r")
        sample = torch.from_numpy(np.asarray(latents[:2048], np.float32))
        mean = sample[:, 0].mean((0, 2, 3))
        variance = sample[:, 0].var((0, 2, 3)) + sample[:, 1].square().mean((0, 2, 3))
        return step, latents, torch.stack([mean, variance])

    def loss(self, step: int) -> tuple[Tensor, Figures]:
        config, weights = self.config, self.weights
        batch = config.optimiser.batch
        rows = batch_rows(config.seed, step, batch, len(self.tiles))
        symmetries = symmetry_of(config.seed, step, batch, config.data.symmetries)
        stored = np.stack(
            [transformed(self.latents[row], int(s), rows=2) for row, s in zip(rows, symmetries, strict=True)]
        )
        posterior = torch.from_numpy(np.ascontiguousarray(stored)).float()
        with torch.no_grad():
            tokens = self.encoder(images_to_tensor(_images(self.tiles, rows, symmetries))).float()
        random = _generator(config.seed, f"diffusion:{step}")
        latents = posterior[:, 0] + posterior[:, 1] * torch.randn(posterior[:, 0].shape, generator=random)
        latents = self.sit.normalise(latents)
        condition = self.encoder.class_token(tokens)
        jitter = torch.randn(condition.shape, generator=random) * self.sit.config.condition_std
        condition = condition + weights.condition_noise * jitter
        noise = torch.randn(latents.shape, generator=random)
        if weights.time == "logit_normal":
            t = losses.logit_normal(torch.randn(batch, generator=random))
        else:
            t = torch.rand(batch, generator=random)
        is_null = torch.rand(batch, generator=random) < weights.null_share
        aligned = weights.alignment > 0 and self.sit.config.projection_depth is not None
        velocity, projection = self.sit(noised(latents, noise, t), t, condition, is_null, project=aligned)
        flow = F.mse_loss(velocity.float(), velocity_target(latents, noise))
        figures = {"flow": flow.item()}
        if projection is None:
            return flow, figures
        against = losses.alignment(projection.float(), self.encoder.patch_tokens(tokens))
        figures["alignment"] = against.item()
        return flow + weights.alignment * against, figures


def step_for(config: TrainConfig, tiles: Tiles, cache: Path) -> Step:
    """The step object of the config's mode."""
    if config.mode == "encoder":
        return EncoderStep(config, tiles)
    if config.mode == "vae":
        return VAEStep(config, tiles)
    return DiffusionStep(config, tiles, cache)
