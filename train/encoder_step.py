"""A step of mode encoder: class, attributes and local composition of a tile, supervised. Randomness is keyed by position in the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthfactory.model.vit import ViTConfig, images_to_tensor, vit_from_dict
from train.config import TrainConfig
from train.loader import Batch, Loader
from train.place import Figures, Phase, Place, single, wide
from train.sizes import check_grid, check_tiles
from train.streams import normal, torch_generator, uniform
from train.symmetry import transformed_grid


class EncoderModule(nn.Module):
    """The ViT and the heads that are thrown away after training."""

    def __init__(
        self, network: dict[str, Any], classes: int, attributes: int, grid_channels: int, *, layout: bool
    ) -> None:
        super().__init__()
        self.vit = vit_from_dict(network)
        width = self.vit.config.width
        self.class_head = nn.Linear(width, classes)
        self.attribute_head = nn.Linear(width, max(attributes, 1))
        self.grid_head = nn.Linear(width, max(grid_channels, 1))
        self.layout_head = nn.Linear(width, 4 * grid_channels) if layout and grid_channels else None


class EncoderStep:
    """Supervised encoder: class, attributes and layout from the class token, local composition from the patch tokens."""

    by_number = False

    def __init__(self, config: TrainConfig, loader: Loader, place: Place) -> None:
        self.config, self.index, self.weights, self.place = config, loader.index, config.encoder, place
        index = loader.index
        sizes = ViTConfig.model_validate(config.network)
        check_tiles("network.image_size", sizes, loader.size_px)
        check_grid(sizes, index.grid.shape[1])
        self.module = EncoderModule(
            config.network,
            len(index.classes),
            index.attributes.shape[1],
            len(index.grid_channels),
            layout=config.encoder.layout > 0,
        )
        generator = torch_generator(config.seed, "encoder")
        self.module.vit.initialise(generator)
        module = self.module
        for head in (module.class_head, module.attribute_head, module.grid_head, module.layout_head):
            if head is None:
                continue
            head.weight.data.normal_(0.0, 0.02, generator=generator)
            head.bias.data.zero_()
        self.module.to(place.device, place.dtype)
        self.attribute_mean, self.attribute_std = _standard(index.attributes, (0,))
        if index.grid_channels:
            self.grid_mean, self.grid_std = _standard(index.grid, (0, 1, 2))

    @property
    def phases(self) -> list[Phase]:
        return single(self.module, self.loss)

    def extra(self) -> dict[str, Any]:
        return {}

    def drawing(self, state: dict[str, Tensor]) -> None:
        return None

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        index, weights = self.index, self.weights
        pixels = images_to_tensor(self.place.bring(batch.images), self.place.dtype)
        tokens = self.module.vit(self._photometric(pixels, batch))
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
            local = ((np.stack(grids) - self.grid_mean) / self.grid_std).astype(np.float32)
            found = wide(self.module.grid_head(self.module.vit.patch_tokens(tokens)))
            by_grid = F.smooth_l1_loss(found, self.place.bring(local.reshape(len(grids), -1, local.shape[-1])))
            total = total + weights.grid * by_grid
            figures["grid"] = by_grid.item()
            if self.module.layout_head is not None:
                by_layout = F.smooth_l1_loss(wide(self.module.layout_head(summary)), self.place.bring(quarters(local)))
                total = total + weights.layout * by_layout
                figures["layout"] = by_layout.item()
        return total, figures

    def _photometric(self, pixels_B3HW: Tensor, batch: Batch) -> Tensor:
        """Random blur, gain and offset: of a scanner, not of the tissue. Tiles that are only looked at stay as they are."""
        if not self.module.training:
            return pixels_B3HW
        seed, spread, each, device = self.config.seed, self.weights.photometric, (3, 1, 1), self.place.device
        gain = 1 + spread * self.place.bring(normal(seed, "gain", batch.positions, each, device))
        offset = spread / 2 * self.place.bring(normal(seed, "offset", batch.positions, each, device))
        soften = self.place.bring(uniform(seed, "soften", batch.positions, (1, 1, 1), device) ** 2)
        return (torch.lerp(pixels_B3HW, F.avg_pool2d(pixels_B3HW, 3, 1, 1), soften) * gain + offset).clamp(0, 1)


def quarters(local_BGGK: np.ndarray) -> np.ndarray:
    """float32 (B, 4 K): the mean of each channel over each quarter of a tile, row by row; a middle row or column is left out."""
    count, side, _, channels = local_BGGK.shape
    half = side // 2
    parts = [
        local_BGGK[:, rows, columns].mean((1, 2), dtype=np.float32)
        for rows in (slice(half), slice(side - half, side))
        for columns in (slice(half), slice(side - half, side))
    ]
    return np.concatenate(parts, axis=1).reshape(count, 4 * channels)


def _standard(values: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axes, dtype=np.float64).astype(np.float32), (values.std(axes, dtype=np.float64) + 1e-3).astype(
        np.float32
    )
