"""The encoder's tokens of every tile under every symmetry, made once and mapped; or made anew for each batch.

Made once, they save the encoder's forward pass of every step, and cost a pass over all tiles, eight where symmetries augment, and disk:
so they are kept where only the class token is needed, and a run sees its tiles oftener than that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthfactory.model.vit import ViT, images_to_tensor
from train.arrays import at_once, batches, kept
from train.config import TrainConfig
from train.loader import Batch, Loader
from train.place import Place, Rows, wide
from train.symmetry import turned

MOST_BYTES = 4e9  # that are kept without being asked for


class Tokens:
    """What a SiT is conditioned on and aligned to. `aligned`: whether patch tokens are needed as well."""

    def __init__(
        self, config: TrainConfig, encoder: ViT, loader: Loader, cache: Path, place: Place, *, aligned: bool
    ) -> None:
        self._encoder, self._loader, self._place, self._aligned = encoder, loader, place, aligned
        self._ways = 8 if config.data.symmetries else 1
        self._class: Rows | None = None
        self._patches: Rows | None = None
        if self._worth_it(config):
            known = f"{loader.index.digest[:12]}-{_identity(encoder)[:12]}-{self._ways}.npy"
            names = ("class-tokens", "patch-tokens") if aligned else ("class-tokens",)
            found = kept(
                [cache / f"{name}-{known}" for name in names], len(loader.index), at_once(place.device), self._made
            )
            self._class, self._patches = Rows(found[0], place), Rows(found[1], place) if aligned else None

    @property
    def kept(self) -> bool:
        """Whether no step needs a tile's pixels for them."""
        return self._class is not None

    @property
    def at_hand(self) -> bool:
        """Whether they are kept, and all of them lie on the device."""
        return all(rows is not None and rows.at_hand for rows in (self._class, *([self._patches] * self._aligned)))

    def of(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Class tokens (B, E), and patch tokens (B, T, E) or None, on the device; no gradient flows through them."""
        bring = self._place.bring
        if self._class is not None:
            way = batch.symmetries if self._ways > 1 else 0 * batch.rows
            patches = None if self._patches is None else self._patches.of(batch.rows, way)
            return self._class.of(batch.rows, way), patches
        with torch.no_grad():
            tokens = wide(self._encoder(images_to_tensor(bring(batch.images), self._place.dtype)))
        return self._encoder.class_token(tokens), self._encoder.patch_tokens(tokens) if self._aligned else None

    def _worth_it(self, config: TrainConfig) -> bool:
        wanted, seen = config.diffusion.features, config.optimiser.steps * config.optimiser.batch
        count = len(self._loader.index) * self._ways
        if wanted == "auto":
            return not self._aligned and seen >= count and count * self._encoder.config.width * 4 <= MOST_BYTES
        return wanted == "cache"

    @torch.no_grad()
    def _made(self, first: int) -> Iterator[list[np.ndarray]]:
        """Of tiles from `first` on: class tokens (n, ways, E) float32 and, where aligned, patch tokens (n, ways, T, E) float16."""
        for rows in batches(first, len(self._loader.index), "tokens", at_once(self._place.device)):
            images = self._loader.images(rows)
            pixels = images_to_tensor(self._place.bring(images), self._place.dtype)
            of_class, of_patches = list[np.ndarray](), list[np.ndarray]()
            for way in range(self._ways):
                tokens = wide(self._encoder(turned(pixels, way)))
                of_class.append(self._encoder.class_token(tokens).float().cpu().numpy())
                if self._aligned:
                    of_patches.append(self._encoder.patch_tokens(tokens).half().cpu().numpy())
            yield [np.stack(found, axis=1) for found in (of_class, of_patches) if found]


def _identity(encoder: ViT) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
