"""Whether `network:` of a config describes a network, and one that fits the tiles and what it builds on: told before anything is
written, at the place where it stands in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from synthfactory.model.sit import SiTConfig, sit_from_dict
from synthfactory.model.vae import VAEConfig, vae_from_dict
from synthfactory.model.vit import ViTConfig, vit_from_dict
from synthfactory.spec.errors import InputError
from synthfactory.spec.faults import faults_of
from train.discriminator import smallest_px

FORMS: dict[str, tuple[type[BaseModel], Callable[[dict[str, Any]], nn.Module]]] = {
    "encoder": (ViTConfig, vit_from_dict), "vae": (VAEConfig, vae_from_dict), "diffusion": (SiTConfig, sit_from_dict),
    "repa-e": (SiTConfig, sit_from_dict),
}  # fmt: skip


def faults_of_network(mode: str, sizes: Mapping[str, Any], *, aligned: bool) -> list[tuple[str, str]]:
    """(path, what is wrong) of every fault; nothing is allocated. `aligned`: a SiT's projector will be read."""
    form, build = FORMS[mode]
    try:
        given = form.model_validate(sizes)
        width, heads = getattr(given, "width", 0), getattr(given, "heads", 1)
        if heads < 1 or width % heads:
            return [("network.heads", f"must divide width ({width})")]
        depth, read_after = getattr(given, "depth", 0), getattr(given, "projection_depth", None)
        if aligned and read_after is not None and not 1 <= read_after <= depth:
            right = f"must be 1 to depth ({depth}), or null for no alignment"
            return [
                (
                    "network.projection_depth",
                    right + ("" if "projection_depth" in sizes else f"; left out, it is {read_after}"),
                )
            ]
        with torch.device("meta"):
            build(dict(sizes))
    except ValidationError as error:
        return [(f"network.{path}", what) for path, what in faults_of(form, error)]
    except (ValueError, RuntimeError) as error:
        return [("network", str(error).splitlines()[0])]
    return []


def check_fit(sizes: Mapping[str, Any], vae: VAEConfig, encoder: ViTConfig, size_px: int) -> None:
    """InputError where a SiT of these sizes does not fit the autoencoder's latents of such tiles, or the encoder."""
    given = SiTConfig.model_validate(sizes)
    check_tiles("encoder_run", encoder, size_px)
    wanted = {"latent_channels": vae.latent_channels, "latent_size": size_px // vae.factor}
    for name, value in wanted.items():
        if getattr(given, name) != value:
            raise InputError(
                f"network.{name}: is {getattr(given, name)}, but the autoencoder of vae_run makes {value} of tiles of {size_px} px; "
                f"write {value}"
            )
    for name in ("condition_width", "projection_width"):
        if sizes.get(name, encoder.width) != encoder.width:
            raise InputError(
                f"network.{name}: is {sizes[name]}, but the encoder of encoder_run has {encoder.width}; leave it out"
            )


def check_tiles(where: str, encoder: ViTConfig, size_px: int) -> None:
    """InputError where the encoder takes tiles of another size: no tile is resized."""
    if encoder.image_size != size_px:
        raise InputError(
            f"{where}: takes tiles of {encoder.image_size} px; those of data.shards have {size_px} px, and no tile is resized"
        )


def check_crop(crop: int, size_px: int) -> None:
    """InputError for crops that the tiles do not hold."""
    if crop > size_px:
        raise InputError(f"vae.crop: {crop} px of tiles of {size_px} px; at most that many")


def check_redrawn(crop: int, size_px: int, *, encoder: bool) -> None:
    """InputError where a base cannot redraw the latents of such crops."""
    if crop != size_px:
        raise InputError(
            f"vae.redrawn: draws whole tiles; write vae.crop: {size_px} (it is {crop}), or leave redrawn out"
        )
    if not encoder:
        raise InputError(
            "vae.redrawn: the base holds no encoder to condition its SiT; name one under base, or leave redrawn out"
        )


def check_factor(crop: int, factor: int) -> None:
    """InputError for crops that the autoencoder cannot take."""
    if crop % factor:
        raise InputError(f"vae.crop: {crop} px is no multiple of {factor}, the autoencoder's factor")


def check_discriminator(where: str, layers: int, side_px: int, of: str) -> None:
    """InputError for a discriminator that has nothing left to score on so few pixels."""
    if side_px < (least := smallest_px(layers)):
        raise InputError(
            f"{where}.discriminator_layers: {layers} need {of} of {least} px or more; it is {side_px} px; write fewer layers"
        )


def check_grid(encoder: ViTConfig, cells: int) -> None:
    """InputError where the tiles' maps of local composition have not one cell for each patch of the encoder (0: there are none)."""
    patches = encoder.image_size // encoder.patch_size
    if cells and cells != patches:
        raise InputError(
            f"network.patch_size: makes {patches} x {patches} patches, and the tiles' maps have {cells} x {cells} cells; choose "
            f"{encoder.image_size // cells}, or leave the maps out of the tars"
        )


def check_projector(mode: str, projection_depth: int | None, name: str) -> None:
    """InputError where repa-e would have nothing to align through."""
    if mode == "repa-e" and projection_depth is None:
        raise InputError(f"base: {name} has no projector, so nothing can be aligned through it; use mode finetune")


def check_condition(run: str, width: int, sit: SiTConfig, name: str) -> None:
    """InputError where the embeddings of `encoder_run` are not as wide as a base's conditions, or as its projector's aims."""
    takes = {sit.condition_width} | ({sit.projection_width} if sit.projection_depth else set())
    if takes != {width}:
        wanted = " and ".join(map(str, sorted(takes)))
        raise InputError(f"encoder_run: {run}: its embeddings are {width} wide; {name} takes {wanted}")


def check_compared(crop: int, patch: int, largest: int) -> None:
    """InputError where the crop is no multiple of the patch of the encoder that compares, or larger than what that takes."""
    if crop % patch or crop > largest:
        raise InputError(
            f"vae.crop: {crop} px cannot be compared by the encoder's features; choose a multiple of {patch} up to {largest}, "
            "or write vae.perceptual: 0"
        )
