"""The networks that diffusion training works with: of two finished runs, or of a model that is there already."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthfactory.model.files import sha256_of
from synthfactory.model.find import find_encoder, find_model
from synthfactory.model.folder import ModelFolder
from synthfactory.model.sit import SiT, sit_from_dict
from synthfactory.model.tensors import read_tensors
from synthfactory.model.vae import VAE, vae_from_dict
from synthfactory.model.vit import ViT, vit_from_dict
from synthfactory.model.weights import LoadedModel, default_device, load_model
from synthfactory.spec.errors import InputError
from train.checkpoint import average_file
from train.config import TrainConfig, load_config
from train.deeper import check_gates, deepened, deeper_config
from train.guided import Guide, guide_of, guided_by
from train.loader import Loader
from train.lora import adapt
from train.place import Place
from train.sizes import check_condition, check_fit, check_projector
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
    guide: Guide | None = None  # whose velocities are learnt in place of the tiles' own


def parts_of(config: TrainConfig, loader: Loader, begun: Mapping[str, Any] = {}) -> Parts:
    """As the config's mode says; statistics of conditions as the run was `begun` with (its notes), where it was. InputError where runs or
    model are not there, or do not fit the tiles.
    """
    return _of_runs(config, loader, begun) if config.base is None else _of_base(config, loader, begun)


def _of_runs(config: TrainConfig, loader: Loader, begun: Mapping[str, Any]) -> Parts:
    assert config.encoder_run and config.vae_run
    encoder_step, encoder, encoder_sha256 = _encoder_of_run(config.encoder_run)
    vae_config = config_of(config.vae_run, "vae")
    vae = vae_from_dict(vae_config.network)
    vae_step, path = average_file(config.vae_run)
    vae.load_state_dict(vae_state(read_tensors(path)))
    check_fit(config.network, vae.config, encoder.config, loader.size_px)
    network = {
        **config.network,
        "condition_width": encoder.config.width,
        **(_noted(begun.get("network")) or condition_statistics(encoder, loader)),
        "projection_width": encoder.config.width,
    }
    sit = sit_from_dict(network)
    sit.initialise(torch_generator(config.seed, "sit"))
    digest = sha256_of(path)
    extra = {
        "network": network, "encoder_step": encoder_step, "encoder_sha256": encoder_sha256,
        "vae_step": vae_step, "vae_sha256": digest,
    }  # fmt: skip
    return Parts(sit, vae.eval().requires_grad_(False), encoder, digest, True, extra)


def condition_statistics(encoder: ViT, loader: Loader) -> dict[str, float]:
    """Mean and deviation of the embeddings' entries over tiles that are trained on: what a SiT standardises its condition by."""
    embeddings = encoder.embed(loader.images(loader.first_rows(512)))
    return {
        "condition_mean": round(float(embeddings.mean()), 4),
        "condition_std": round(float(embeddings.std()), 4),
    }


def _noted(found: Mapping[str, Any] | None) -> dict[str, float]:
    """A run keeps the statistics that it was begun with: a later version, or another machine, may measure others."""
    names = ("condition_mean", "condition_std")
    return {name: found[name] for name in names} if found and all(name in found for name in names) else {}


def config_of(run: str, mode: str) -> TrainConfig:
    """The config of a run that another builds on. InputError where it is none, or of another mode."""
    if not (Path(run) / "config.yaml").exists():
        exported = (Path(run) / "config.json").exists()
        what = (
            "is an exported model; name the run that it is of, or the model as base"
            if exported
            else "is no run folder yet; train it first, or name another"
        )
        raise InputError(f"{mode}_run: {run}: {what}")
    config = load_config(f"{run}/config.yaml")
    if config.mode != mode:
        raise InputError(f"{mode}_run: {run}: is a run of mode {config.mode}; name one of mode {mode}")
    if mode == "vae" and config.base is not None:
        raise InputError(
            f"vae_run: {run}: goes on from a model; export it, and name the export as base with mode finetune or repa-e"
        )
    return config


def _encoder_of_run(run: str) -> tuple[int, ViT, str]:
    """(step, averaged encoder, sha256 of its file) of a run; the heads that taught it are left behind."""
    config = config_of(run, "encoder")
    encoder = vit_from_dict(config.network)
    step, path = average_file(run)
    state = read_tensors(path)
    encoder.load_state_dict(vit_state(state))
    return step, encoder.eval().requires_grad_(False), sha256_of(path)


def vit_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights without the heads that taught it."""
    return {name.removeprefix("vit."): value for name, value in state.items() if name.startswith("vit.")}


def vae_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's weights of a run that may have kept a discriminator beside it."""
    own = {name.removeprefix("vae."): value for name, value in state.items() if name.startswith("vae.")}
    return own or state


@dataclass(frozen=True)
class VAEParts:
    """An autoencoder to train, the fixed encoder whose features are compared, where there is one, and the model it is of, where it is."""

    vae: VAE
    encoder: ViT | None
    extra: dict[str, Any]
    base: LoadedModel | None = None


def vae_parts(config: TrainConfig, loader: Loader) -> VAEParts:
    """For mode vae: a new one of the config's sizes, or the base model's, of which `finetune.parts` learns."""
    if config.base is not None:
        folder, model = _base(config, loader)
        vae = model.vae.cpu().train()
        chosen, names = chosen_weights(vae, config.finetune.parts)
        extra = {"base": _named(folder), "learns": f"{chosen} of {names} tensors of the autoencoder"}
        encoder, origin = _compared_by(config)
        if encoder is None and model.encoder is not None:
            encoder = model.encoder.cpu()
        return VAEParts(vae, encoder, {**extra, **origin}, model)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        vae = vae_from_dict(config.network)
    return VAEParts(vae, *_compared_by(config))


def _compared_by(config: TrainConfig) -> tuple[ViT | None, dict[str, Any]]:
    """The encoder of `encoder_run`, where features are compared, and what a run notes of it."""
    if not config.encoder_run or config.vae.features != "encoder" or config.vae.perceptual == 0:
        return None, {}
    step, encoder, sha256 = _encoder_of_run(config.encoder_run)
    return encoder, {"encoder_step": step, "encoder_sha256": sha256}


def _base(config: TrainConfig, loader: Loader) -> tuple[ModelFolder, LoadedModel]:
    """The model to go on from. InputError where it cannot be trained, or draws tiles of another size."""
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
    if folder.tile_size_px != loader.size_px:
        raise InputError(
            f"base: {folder.id} draws tiles of {folder.tile_size_px} px; those of data.shards have {loader.size_px} px"
        )
    return folder, model


def _named(folder: ModelFolder) -> dict[str, str]:
    return {"id": folder.id, "revision": folder.revision, "sha256": folder.sha256}


def _of_base(config: TrainConfig, loader: Loader, begun: Mapping[str, Any]) -> Parts:
    folder, model = _base(config, loader)
    assert model.encoder is not None
    sit, plan = model.sit.cpu(), config.finetune
    extra: dict[str, Any] = {"base": _named(folder)}
    encoder = model.encoder.cpu()
    if config.encoder_run is not None:
        step, encoder, digest = _encoder_of_run(config.encoder_run)
        check_condition(config.encoder_run, encoder.config.width, sit.config, folder.id)
        condition = _noted(begun.get("condition")) or condition_statistics(encoder, loader)
        extra |= {"encoder_step": step, "encoder_sha256": digest, "condition": condition}
        state, sit = sit.state_dict(), sit_from_dict(sit.config.model_dump() | extra["condition"])
        sit.load_state_dict(state)
    guide = None
    if plan.guided is not None:
        guide, extra["guide"] = guide_of(plan.guided, folder, sit, model.vae)
    deep = deeper_config(sit.config, plan.depth, folder.id)
    if deep != sit.config:
        extra["sit"] = {name: getattr(deep, name) for name in ("depth", "projection_depth")}
        sit = deepened(sit, deep)
    if plan.lora is not None:
        adapted = adapt(sit, plan.lora.targets, plan.lora.rank, plan.lora.scale, torch_generator(config.seed, "lora"))
        learns = f"adapters of rank {plan.lora.rank} in {adapted} layers"
    else:
        chosen, names = chosen_weights(sit, plan.parts)
        check_gates(sit, int(folder.config["sit"]["depth"]))
        learns = f"{chosen} of {names} tensors"
    if plan.statistics == "measure":
        learns += ", mean and variance of latents taken anew"
    if guide is not None:
        learns += f", {guided_by(guide, extra['guide'])}"
    check_projector(config.mode, sit.config.projection_depth, folder.id)
    extra["learns"] = learns
    digest, fresh = str(folder.config["files"]["vae.safetensors"]), plan.statistics == "measure"
    return Parts(sit, model.vae.cpu(), encoder, digest, fresh, extra, guide)


def chosen_weights(network: nn.Module, patterns: Sequence[str]) -> tuple[int, int]:
    """Lets the weights whose names fit learn, and no others; returns (learning, all). InputError where a pattern fits none."""
    names = [name for name, _ in network.named_parameters() if name != "pos_embed"]
    found = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    idle = [pattern for pattern, fits in found.items() if not fits]
    if idle:
        raise InputError(f"finetune.parts: no weight's name fits {', '.join(idle)}; for example '{names[0]}', or '*'")
    chosen = set[str]().union(*found.values())
    for name, weight in network.named_parameters():
        weight.requires_grad_(name in chosen)
    return len(chosen), len(names)


def drawing_model(sit: SiT, vae: VAE, encoder: ViT, size_px: int, place: Place) -> LoadedModel:
    """Networks of a run as a model that draws, float32 in eval mode; `sit` and `vae` are the caller's to give away."""
    ready = [module.to(place.device).float().eval().requires_grad_(False) for module in (sit, vae)]
    copied = copy.deepcopy(encoder).float() if place.dtype != torch.float32 else encoder
    return LoadedModel(ready[0], ready[1], copied, size_px, place.device)  # type: ignore[arg-type]
