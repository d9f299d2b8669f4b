"""Loads a model folder: config.json -> networks, safetensors -> weights, every file checked against its hash first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from synthfactory.model.folder import ModelFolder
from synthfactory.model.sit import SiT, sit_from_dict
from synthfactory.model.vae import VAE, vae_from_dict
from synthfactory.model.vit import ViT, vit_from_dict
from synthfactory.spec.errors import InputError


@dataclass(frozen=True)
class LoadedModel:
    """The three networks, float32, in eval mode, on one device."""

    sit: SiT
    vae: VAE
    encoder: ViT
    tile_size_px: int
    device: torch.device

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) -> embeddings float32 (N, E)."""
        return self.encoder.embed(images)


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _filled(module: nn.Module, folder: ModelFolder, part: str) -> nn.Module:
    path = folder.path / f"{part}.safetensors"
    try:
        state = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
        module.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"model: {path}: does not fit the {part} of config.json: {str(error).splitlines()[0]}"
        ) from None
    return module.eval().requires_grad_(False)


def load_encoder(folder: ModelFolder, device: torch.device | None = None) -> ViT:
    """The encoder alone, for embedding tiles before any sampling."""
    folder.check_files()
    encoder = _filled(vit_from_dict(_size(folder, "encoder")), folder, "encoder")
    assert isinstance(encoder, ViT)
    return encoder.to(device or default_device())


def _size(folder: ModelFolder, part: str) -> dict[str, object]:
    return {key: value for key, value in folder.config[part].items() if key != "id"}


def load_model(folder: ModelFolder, device: torch.device | None = None) -> LoadedModel:
    """All three networks. InputError where a file is missing, damaged or does not fit config.json."""
    place = device or default_device()
    try:
        sit, vae = sit_from_dict(_size(folder, "sit")), vae_from_dict(_size(folder, "vae"))
        encoder = load_encoder(folder, place)
    except (ValidationError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model: {folder.path / 'config.json'}: {str(error).splitlines()[0]}") from None
    _filled(sit, folder, "sit")
    _filled(vae, folder, "vae")
    return LoadedModel(sit.to(place), vae.to(place), encoder, folder.tile_size_px, place)
