"""The encoder's tokens of every tile under every symmetry, made once and mapped; or made anew for each batch.

Made once, they save the encoder's forward pass of every step, and cost a pass over all tiles, eight where symmetries augment, and disk:
so they are kept where only the class token is needed, and a run sees its tiles oftener than that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from synthfactory.model.vit import ViT, images_to_tensor
from train.config import TrainConfig
from train.loader import Batch, Loader
from train.place import Place, wide
from train.symmetry import transformed

MOST_BYTES = 4e9  # that are kept without being asked for


class Tokens:
    """What a SiT is conditioned on and aligned to. `aligned`: whether patch tokens are needed as well."""

    def __init__(
        self, config: TrainConfig, encoder: ViT, loader: Loader, cache: Path, place: Place, *, aligned: bool
    ) -> None:
        self._encoder, self._loader, self._place, self._aligned = encoder, loader, place, aligned
        self._ways = 8 if config.data.symmetries else 1
        self._class: np.ndarray | None = None
        self._patches: np.ndarray | None = None
        if self._worth_it(config):
            known = f"{loader.index.digest[:12]}-{_identity(encoder)[:12]}-{self._ways}.npy"
            names = ("class-tokens", "patch-tokens") if aligned else ("class-tokens",)
            kept = self._kept([cache / f"{name}-{known}" for name in names])
            self._class, self._patches = kept[0], kept[1] if aligned else None

    @property
    def kept(self) -> bool:
        """Whether no step needs a tile's pixels for them."""
        return self._class is not None

    def of(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Class tokens (B, E), and patch tokens (B, T, E) or None, on the device; no gradient flows through them."""
        bring = self._place.bring
        if self._class is not None:
            way = batch.symmetries if self._ways > 1 else np.zeros_like(batch.rows)
            patches = None if self._patches is None else bring(np.asarray(self._patches[batch.rows, way], np.float32))
            return bring(np.asarray(self._class[batch.rows, way])), patches
        with torch.no_grad():
            tokens = wide(self._encoder(bring(images_to_tensor(batch.images))))
        return self._encoder.class_token(tokens), self._encoder.patch_tokens(tokens) if self._aligned else None

    def _worth_it(self, config: TrainConfig) -> bool:
        wanted, seen = config.diffusion.features, config.optimiser.steps * config.optimiser.batch
        count = len(self._loader.index) * self._ways
        if wanted == "auto":
            return not self._aligned and seen >= count and count * self._encoder.config.width * 4 <= MOST_BYTES
        return wanted == "cache"

    def _kept(self, paths: Sequence[Path]) -> list[np.ndarray]:
        """Mapped (N, ways, E) float32, and where a second path is given (N, ways, T, E) float16; made where they are not there yet."""
        if not all(path.exists() for path in paths):
            written = [path.with_name(f".tmp-{os.getpid()}-{path.name}") for path in paths]
            self._write(written)
            for temporary, path in zip(written, paths, strict=True):
                temporary.rename(path)
        return [np.asarray(np.load(path, mmap_mode="r")) for path in paths]

    @torch.no_grad()
    def _write(self, paths: Sequence[Path]) -> None:
        count, sinks = len(self._loader.index), list[np.ndarray]()
        for start in tqdm(range(0, count, 16), desc="tokens", mininterval=5.0, leave=False):
            rows = np.arange(start, min(start + 16, count))
            images = self._loader.images(rows)
            for way in range(self._ways):
                turned = np.stack([transformed(image, way) for image in images])
                tokens = wide(self._encoder(self._place.bring(images_to_tensor(turned))))
                both = (self._encoder.class_token(tokens), self._encoder.patch_tokens(tokens))
                for path, found, kind in list(zip(paths, both, (np.float32, np.float16), strict=False))[len(sinks) :]:
                    sinks.append(np.lib.format.open_memmap(path, "w+", kind, (count, self._ways, *found.shape[1:])))
                for sink, found in zip(sinks, both, strict=False):
                    sink[rows, way] = found.float().cpu().numpy()


def _identity(encoder: ViT) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
