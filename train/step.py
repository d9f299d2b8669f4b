"""One training step of each mode: from a batch to a loss. All randomness comes from (seed, step) or (seed, position in the run).

Each class offers `module` (what is trained), `loss(batch)` -> (scalar, figures) and `extra()` -> config for the export.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthfactory.model.interpolant import noised, velocity_target
from synthfactory.model.sit import SiT, sit_from_dict
from synthfactory.model.vae import pixels_from_uint8, vae_from_dict
from synthfactory.model.vit import images_to_tensor, vit_from_dict
from synthfactory.spec.errors import InputError
from train import losses
from train.checkpoint import average_file, load_average
from train.config import TrainConfig, load_config
from train.loader import Batch, Loader
from train.streams import normal, stream, torch_generator, uniform
from train.symmetry import transformed, transformed_grid, turned

Figures = dict[str, float]


class Place(NamedTuple):
    """Where a module's weights lie, and in which format; batches are brought there."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def bring(self, found: Tensor | np.ndarray) -> Tensor:
        """A tensor or array on the device; numbers with a point in the module's format."""
        tensor = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, non_blocking=True)


def wide(found: Tensor) -> Tensor:
    """float32 of what autocast has made smaller: losses are sums of many terms."""
    return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found


class Step(Protocol):
    """What the loop needs of a mode."""

    @property
    def module(self) -> nn.Module: ...

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]: ...

    def extra(self) -> dict[str, Any]: ...


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

    def __init__(self, config: TrainConfig, loader: Loader, place: Place) -> None:
        self.config, self.index, self.weights, self.place = config, loader.index, config.encoder, place
        index = loader.index
        self.module = EncoderModule(
            config.network, len(index.classes), index.attributes.shape[1], len(index.grid_channels)
        )
        generator = torch_generator(config.seed, "encoder")
        self.module.vit.initialise(generator)
        for head in (self.module.class_head, self.module.attribute_head, self.module.grid_head):
            head.weight.data.normal_(0.0, 0.02, generator=generator)
            head.bias.data.zero_()
        self.module.to(place.device, place.dtype)
        self.attribute_mean, self.attribute_std = _standard(index.attributes, (0,))
        if index.grid_channels:
            self.grid_mean, self.grid_std = _standard(index.grid, (0, 1, 2))

    def extra(self) -> dict[str, Any]:
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        index, weights = self.index, self.weights
        tokens = self.module.vit(self._photometric(self.place.bring(images_to_tensor(batch.images)), batch))
        summary = self.module.vit.class_token(tokens)
        logits = wide(self.module.class_head(summary))
        labels = self.place.bring(index.labels[batch.rows])
        by_class = F.cross_entropy(logits, labels, label_smoothing=weights.label_smoothing)
        total = weights.classes * by_class
        figures = {"classes": by_class.item(), "accuracy": (logits.argmax(1) == labels).float().mean().item()}
        if index.attributes.shape[1]:
            wanted = self.place.bring((index.attributes[batch.rows] - self.attribute_mean) / self.attribute_std)
            by_attribute = F.smooth_l1_loss(wide(self.module.attribute_head(summary)), wanted)
            total = total + weights.attributes * by_attribute
            figures["attributes"] = by_attribute.item()
        if index.grid_channels:
            grids = [
                transformed_grid(index.grid[row], int(s), index.grid_channels)
                for row, s in zip(batch.rows, batch.symmetries, strict=True)
            ]
            local = (np.stack(grids) - self.grid_mean) / self.grid_std
            found = wide(self.module.grid_head(self.module.vit.patch_tokens(tokens)))
            by_grid = F.smooth_l1_loss(
                found, self.place.bring(local.reshape(len(grids), -1, local.shape[-1]).astype(np.float32))
            )
            total = total + weights.grid * by_grid
            figures["grid"] = by_grid.item()
        return total, figures

    def _photometric(self, pixels_B3HW: Tensor, batch: Batch) -> Tensor:
        """Random blur, gain and offset: of a scanner, not of the tissue."""
        seed, spread, positions = self.config.seed, self.weights.photometric, batch.positions.tolist()
        gain = 1 + spread * self.place.bring(normal(seed, "gain", positions, (3, 1, 1)))
        offset = spread / 2 * self.place.bring(normal(seed, "offset", positions, (3, 1, 1)))
        soften = self.place.bring(uniform(seed, "soften", positions, (1, 1, 1)) ** 2)
        return (torch.lerp(pixels_B3HW, F.avg_pool2d(pixels_B3HW, 3, 1, 1), soften) * gain + offset).clamp(0, 1)


def _standard(values: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axes, dtype=np.float64).astype(np.float32), (values.std(axes, dtype=np.float64) + 1e-3).astype(
        np.float32
    )


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

    def extra(self) -> dict[str, Any]:
        return {}

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


class DiffusionStep:
    """Flow matching on cached latents, conditioned on the encoder's class token, aligned to its patch tokens."""

    def __init__(self, config: TrainConfig, loader: Loader, cache: Path, place: Place) -> None:
        assert config.encoder_run and config.vae_run
        self.config, self.index, self.weights, self.place = config, loader.index, config.diffusion, place
        index = loader.index
        encoder_config = load_config(f"{config.encoder_run}/config.yaml")
        encoder = EncoderModule(
            encoder_config.network, len(index.classes), index.attributes.shape[1], len(index.grid_channels)
        )
        at_encoder = load_average(config.encoder_run, encoder)
        self.encoder = encoder.vit.eval().requires_grad_(False).to(place.device)
        at_vae, self.latents, statistics = self._latents(loader, cache)
        embeddings = self.encoder.embed(loader.images(np.arange(min(512, len(index)))))
        self.encoder.to(place.dtype)
        network = {
            **config.network,
            "condition_width": self.encoder.config.width,
            "condition_mean": round(float(embeddings.mean()), 4),
            "condition_std": round(float(embeddings.std()), 4),
            "projection_width": self.encoder.config.width,
        }
        self.sit: SiT = sit_from_dict(network)
        self.sit.initialise(torch_generator(config.seed, "sit"))
        assert self.sit.bn.running_mean is not None and self.sit.bn.running_var is not None
        self.sit.bn.running_mean.copy_(statistics[0])
        self.sit.bn.running_var.copy_(statistics[1])
        self.sit.to(place.device, place.dtype)
        self.module: nn.Module = self.sit
        self._extra = {"network": network, "encoder_step": at_encoder, "vae_step": at_vae}

    def extra(self) -> dict[str, Any]:
        return self._extra

    def _latents(self, loader: Loader, cache: Path) -> tuple[int, np.ndarray, Tensor]:
        """(VAE step, latents float16 (N, 2, C, H, W) of means and deviations, channel mean and variance (2, C))."""
        assert self.config.vae_run
        vae = vae_from_dict(load_config(f"{self.config.vae_run}/config.yaml").network)
        step = load_average(self.config.vae_run, vae)
        vae.eval().requires_grad_(False).to(self.place.device)
        weights = hashlib.sha256(average_file(self.config.vae_run)[1].read_bytes()).hexdigest()
        path = cache / f"latents-{self.index.digest[:12]}-{weights[:12]}.npy"
        if not path.exists():
            found = []
            with torch.no_grad():
                for start in range(0, len(self.index), 16):
                    images = torch.from_numpy(loader.images(np.arange(start, min(start + 16, len(self.index)))))
                    mean, log_variance = vae.encode(pixels_from_uint8(images).to(self.place.device))
                    found.append(torch.stack([mean, (0.5 * log_variance).exp()], dim=1).half().cpu().numpy())
            temporary = path.with_name(f".tmp-{os.getpid()}-" + path.name)
            np.save(temporary, np.concatenate(found))
            temporary.rename(path)
        latents = np.load(path, mmap_mode="r")
        sample = torch.from_numpy(np.asarray(latents[:2048], np.float32))
        mean = sample[:, 0].mean((0, 2, 3))
        variance = sample[:, 0].var((0, 2, 3)) + sample[:, 1].square().mean((0, 2, 3))
        return step, latents, torch.stack([mean, variance])

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        seed, weights, positions = self.config.seed, self.weights, batch.positions.tolist()
        stored = [
            transformed(self.latents[row], int(s), rows=2) for row, s in zip(batch.rows, batch.symmetries, strict=True)
        ]
        bring = self.place.bring
        posterior = bring(np.ascontiguousarray(np.stack(stored)))
        with torch.no_grad():
            tokens = wide(self.encoder(bring(images_to_tensor(batch.images))))
        shape = posterior.shape[2:]
        latents = posterior[:, 0] + posterior[:, 1] * bring(normal(seed, "posterior", positions, shape))
        latents = self.sit.normalise(latents)
        condition = self.encoder.class_token(tokens)
        jitter = bring(normal(seed, "jitter", positions, condition.shape[1:])) * self.sit.config.condition_std
        condition = condition + weights.condition_noise * jitter
        noise = bring(normal(seed, "noise", positions, shape))
        if weights.time == "logit_normal":
            t = losses.logit_normal(bring(normal(seed, "time", positions, ())))
        else:
            t = bring(uniform(seed, "time", positions))
        is_null = bring(uniform(seed, "null", positions) < weights.null_share)
        aligned = weights.alignment > 0 and self.sit.config.projection_depth is not None
        velocity, projection = self.sit(noised(latents, noise, t), t, condition, is_null, project=aligned)
        flow = F.mse_loss(wide(velocity), velocity_target(latents, noise))
        figures = {"flow": flow.item()}
        if projection is None:
            return flow, figures
        against = losses.alignment(wide(projection), self.encoder.patch_tokens(tokens))
        figures["alignment"] = against.item()
        return flow + weights.alignment * against, figures


def step_for(config: TrainConfig, loader: Loader, cache: Path, place: Place) -> Step:
    """The step object of the config's mode, its module at `place`."""
    if config.mode == "encoder":
        return EncoderStep(config, loader, place)
    if config.mode == "vae":
        return VAEStep(config, loader, place)
    return DiffusionStep(config, loader, cache, place)
