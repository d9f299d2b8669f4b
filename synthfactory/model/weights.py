"""Loads model folders and encoders: config.json -> networks, safetensors -> weights, every file checked against its hash first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from synthfactory.model.encoder import EncoderFolder, encoder_of
from synthfactory.model.files import pickle_problem, shapes_in
from synthfactory.model.folder import ModelFolder
from synthfactory.model.sit import SiT, sit_from_dict
from synthfactory.model.vae import VAE, vae_from_dict
from synthfactory.model.vit import ViT, vit_from_dict
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

Network = TypeVar("Network", bound=nn.Module)
_BLOCK = re.compile(r"blocks\.(\d{1,4})\.")


@dataclass(frozen=True)
class LoadedModel:
    """The three networks, float32, in eval mode, on one device."""

    sit: SiT
    vae: VAE
    encoder: ViT | None  # None: only its name is known
    tile_size_px: int
    device: torch.device

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) -> embeddings float32 (N, E). Only where there is an encoder."""
        assert self.encoder is not None
        return self.encoder.embed(images)


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def misfit(make: Callable[[], nn.Module], path: Path) -> str | None:
    """The first tensor of a file that the network which `make` gives has not, or of another shape, or the other way round; None where
    all fit. The network is made on the meta device: nothing of its size is.
    """
    found = shapes_in(path, "export the model again")
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if not wrong:
        return None
    return f"{shown(wrong[0])} has {found.get(wrong[0])}, config.json needs {wanted.get(wrong[0])} ({len(wrong)} such)"


def _filled(make: Callable[[], Network], path: Path, what: str) -> Network:
    """The network with the weights of a file, whose names and shapes are compared before anything of that size is made."""
    problem = pickle_problem(path)
    if problem:
        raise InputError(f"model: {path}: {problem}; safetensors are needed")
    differs = misfit(make, path)
    if differs:
        raise InputError(f"model: {path}: does not fit the {what} of config.json: {differs}")
    module = make()
    try:
        state = load_file(path)
        whole = {name for name, value in module.state_dict().items() if not value.is_floating_point()}
        odd = sorted(name for name, value in state.items() if not (value.is_floating_point() or name in whole))
        if odd:
            raise InputError(
                f"model: {path}: {shown(odd[0])} holds whole numbers, and weights are floats; export the model again"
            )
        module.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"model: {path}: does not fit the {what} of config.json: {str(error).splitlines()[0]}"
        ) from None
    module.eval().requires_grad_(False)
    return module


def load_encoder(encoder: EncoderFolder, device: torch.device | None = None) -> ViT:
    """An encoder alone, float32, in eval mode: the part of a model folder, or H0-mini as published.

    InputError where the weights are missing, damaged, a pickle, or of another form than H0-mini's.
    """
    encoder.check()
    path = encoder.weights
    size = encoder.size if encoder.size is not None else timm_size(shapes_in(path, "fetch it again"), encoder)
    try:
        found = _filled(lambda: vit_from_dict(dict(size)), path, "encoder")
    except ValidationError as error:
        raise InputError(f"encoder: {path}: {str(error).splitlines()[0]}") from None
    return found.to(device or default_device())


def timm_size(shapes: Mapping[str, tuple[int, ...]], encoder: EncoderFolder) -> dict[str, object]:
    """The fields of our ViT for an encoder of timm's form, read off its tensors; heads are 64 wide, as in every ViT-S, B and L.

    InputError where the tensors are not those of a ViT with packed SwiGLU, and positions for patches alone.
    """
    where = f"encoder: {encoder.weights}"
    try:
        width = shapes["cls_token"][-1]
        patch = shapes["patch_embed.proj.weight"][-1]
        positions, registers = shapes["pos_embed"][1], shapes["reg_token"][1]
        hidden, inner = shapes["blocks.0.mlp.fc1.weight"][0], shapes["blocks.0.mlp.fc2.weight"][1]
    except (KeyError, IndexError) as error:
        raise InputError(f"{where}: has no tensor {error}; H0-mini's form (timm's names) is needed") from None
    depth = 1 + max(int(found[1]) for name in shapes if (found := _BLOCK.match(name)))
    if hidden != 2 * inner:
        raise InputError(
            f"{where}: its blocks have a plain MLP ({hidden} to {inner}); H0-mini's packed SwiGLU is needed"
        )
    if patch < 1 or positions != (encoder.image_size_px // patch) ** 2:
        raise InputError(
            f"{where}: has {positions} positions; {encoder.image_size_px} px in patches of {patch} px need "
            f"{(encoder.image_size_px // max(patch, 1)) ** 2}, without class token and registers"
        )
    if width != encoder.width or width % 64:
        raise InputError(f"{where}: is {width} wide; config.json says {encoder.width}, and heads of 64 are needed")
    return {
        "image_size": encoder.image_size_px,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": width // 64,
        "mlp_hidden": hidden,
        "registers": registers,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        "mean": encoder.mean,
        "std": encoder.std,
    }


def _size(folder: ModelFolder, part: str) -> dict[str, object]:
    return {key: value for key, value in folder.config[part].items() if key != "id"}


def load_model(
    folder: ModelFolder, apart: EncoderFolder | None = None, device: torch.device | None = None
) -> LoadedModel:
    """All networks of the folder, with the encoder `apart` in place of its own where one is given.

    InputError where a file is missing, damaged or does not fit config.json.
    """
    place = device or default_device()
    folder.check_files()
    try:
        sit = _filled(lambda: sit_from_dict(_size(folder, "sit")), folder.path / "sit.safetensors", "sit")
        vae = _filled(lambda: vae_from_dict(_size(folder, "vae")), folder.path / "vae.safetensors", "vae")
        found = apart or (encoder_of(folder) if folder.has_encoder else None)
        encoder = load_encoder(found, torch.device("cpu")) if found else None
    except (ValidationError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model: {folder.path / 'config.json'}: {str(error).splitlines()[0]}") from None
    return LoadedModel(sit.to(place), vae.to(place), encoder and encoder.to(place), folder.tile_size_px, place)
