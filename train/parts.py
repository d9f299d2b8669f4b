"""The networks that diffusion training works with: of two finished runs, or of a model that is there already."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from synthfactory.model.find import find_encoder, find_model
from synthfactory.model.folder import ModelFolder
from synthfactory.model.sit import SiT, sit_from_dict
from synthfactory.model.vae import VAE, vae_from_dict
from synthfactory.model.vit import ViT
from synthfactory.model.weights import LoadedModel, default_device, load_model
from synthfactory.spec.errors import InputError
from train.checkpoint import average_file, load_average
from train.config import TrainConfig, load_config
from train.encoder_step import EncoderModule
from train.loader import Loader
from train.lora import adapt
from train.place import Place
from train.streams import torch_generator


@dataclass(frozen=True)
class Parts:
    """A SiT to train, the fixed VAE and encoder, float32 in eval mode on the CPU. `fresh`: latent statistics are yet to be measured."""

    sit: SiT
    vae: VAE
    encoder: ViT
    vae_sha256: str
    fresh: bool
    extra: dict[str, Any]


def parts_of(config: TrainConfig, loader: Loader) -> Parts:
    """As the config's mode says. InputError where runs or model are not there, or do not fit the tiles."""
    return _of_runs(config, loader) if config.base is None else _of_base(config, loader)


def _of_runs(config: TrainConfig, loader: Loader) -> Parts:
    assert config.encoder_run and config.vae_run
    index = loader.index
    encoder_config = load_config(f"{config.encoder_run}/config.yaml")
    trained = EncoderModule(
        encoder_config.network, len(index.classes), index.attributes.shape[1], len(index.grid_channels)
    )
    encoder_step = load_average(config.encoder_run, trained)
    encoder = trained.vit.eval().requires_grad_(False)
    vae = vae_from_dict(load_config(f"{config.vae_run}/config.yaml").network)
    vae_step = load_average(config.vae_run, vae)
    embeddings = encoder.embed(loader.images(np.arange(min(512, len(index)))))
    network = {
        **config.network,
        "condition_width": encoder.config.width,
        "condition_mean": round(float(embeddings.mean()), 4),
        "condition_std": round(float(embeddings.std()), 4),
        "projection_width": encoder.config.width,
    }
    sit = sit_from_dict(network)
    sit.initialise(torch_generator(config.seed, "sit"))
    digest = hashlib.sha256(average_file(config.vae_run)[1].read_bytes()).hexdigest()
    extra = {"network": network, "encoder_step": encoder_step, "vae_step": vae_step}
    return Parts(sit, vae.eval().requires_grad_(False), encoder, digest, True, extra)


def _of_base(config: TrainConfig, loader: Loader) -> Parts:
    assert config.base is not None
    try:
        folder = find_model(config.base)
        if not isinstance(folder, ModelFolder):
            raise InputError(
                f"{config.base.name}: is run by its own pipeline; convert a copy of it with `synthfactory model import` to fine-tune it"
            )
        apart = find_encoder(config.base, folder)
        model = load_model(folder, apart, default_device())
    except InputError as error:
        raise InputError(f"base: {str(error).removeprefix('model: ')}") from None
    assert model.encoder is not None
    if folder.tile_size_px != loader.size_px:
        raise InputError(
            f"base: {folder.id} draws tiles of {folder.tile_size_px} px; those of data.shards have {loader.size_px} px"
        )
    sit, plan = model.sit.cpu(), config.finetune
    if plan.lora is not None:
        adapted = adapt(sit, plan.lora.targets, plan.lora.rank, plan.lora.scale, torch_generator(config.seed, "lora"))
        learns = f"adapters of rank {plan.lora.rank} in {adapted} layers"
    else:
        chosen, names = chosen_weights(sit, plan.parts)
        learns = f"{chosen} of {names} tensors"
    if config.mode == "repa-e" and sit.config.projection_depth is None:
        raise InputError(f"base: {folder.id} has no projector, so nothing can be aligned through it; use mode finetune")
    extra = {
        "base": {"id": folder.id, "revision": folder.revision, "sha256": folder.sha256},
        "learns": learns,
    }
    return Parts(
        sit, model.vae.cpu(), model.encoder.cpu(), str(folder.config["files"]["vae.safetensors"]), False, extra
    )


def chosen_weights(sit: SiT, patterns: Sequence[str]) -> tuple[int, int]:
    """Lets the weights whose names fit learn, and no others; returns (how many learn, of how many). InputError where none fits."""
    names = [name for name, _ in sit.named_parameters() if name != "pos_embed"]
    chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen:
        raise InputError(
            f"finetune.parts: no weight's name fits {', '.join(patterns)}; for example blocks.*.attn.*, or '*'"
        )
    for name, weight in sit.named_parameters():
        weight.requires_grad_(name in chosen)
    return len(chosen), len(names)


def drawing_model(sit: SiT, vae: VAE, encoder: ViT, size_px: int, place: Place) -> LoadedModel:
    """Networks of a run as a model that draws, float32 in eval mode; `sit` and `vae` are the caller's to give away."""
    ready = [module.to(place.device).float().eval().requires_grad_(False) for module in (sit, vae)]
    copied = copy.deepcopy(encoder).float() if place.dtype != torch.float32 else encoder
    return LoadedModel(ready[0], ready[1], copied, size_px, place.device)  # type: ignore[arg-type]
