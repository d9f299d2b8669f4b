"""Guidance learnt into weights: a SiT learns to draw by itself what its base draws when it is guided away from a weaker model.

Where a weaker model of the same tiles falls short, a better one falls short less, and often in the same way: the step from the weaker to
the better one, taken a little further, mends what both do badly (autoguidance, arXiv 2406.02507; classifier-free guidance, whose weaker
model does not know the condition, sharpens the condition instead). The guided velocity is the aim of the loss in the place of the data's
own (distillation of guidance, arXiv 2210.03142): it has no noise in it, so that few tiles a step are enough, and drawing costs no second
network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from synthfactory.model.ancestry import ancestry
from synthfactory.model.find import find_model
from synthfactory.model.folder import ModelFolder
from synthfactory.model.sit import SiT, SiTConfig, sit_from_dict
from synthfactory.model.vae import VAE
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import repo_of
from train.config import Guided
from train.place import Place, wide

SAME = ("latent_channels", "latent_size", "latent_norm_eps", "condition_width", "condition_mean", "condition_std")


@dataclass(frozen=True)
class Guide:
    """The base's SiT as it was, and the weaker one that it is guided away from; both in eval mode, and neither learns."""

    base: SiT
    weaker: SiT
    scale: float

    def to(self, place: Place) -> Guide:
        """On the device, in the module's format."""
        base, weaker = (sit.to(place.device, place.dtype) for sit in (self.base, self.weaker))
        return Guide(base, weaker, self.scale)

    @torch.no_grad()
    def velocity(self, noisy: Tensor, t: Tensor, condition: Tensor, is_null: Tensor) -> Tensor:
        """(B, C, H, W): the weaker one's + scale x (the base's - the weaker one's), of the same conditions or lack of them."""
        better, weaker = (wide(sit(noisy, t, condition, is_null)[0]) for sit in (self.base, self.weaker))
        return weaker + self.scale * (better - weaker)


def guide_folder(wanted: Guided, base: ModelFolder) -> tuple[ModelFolder, SiTConfig]:
    """The weaker model and its SiT's sizes. InputError where it cannot guide the base, or where its terms would have to travel along."""
    at = f"finetune.guided.by: {wanted.by.name}"
    try:
        found = find_model(wanted.by)
    except InputError as error:
        raise _named(error) from None
    if not isinstance(found, ModelFolder):
        raise InputError(f"{at}: is run by its own pipeline; convert a copy of it with `synthfactory model import`")
    if found.config["files"]["sit.safetensors"] == base.config["files"]["sit.safetensors"]:
        raise InputError(
            f"{at}: draws with the base's own SiT; name a model that learnt less, for example an earlier one"
        )
    bound = [
        *sorted(key for key in {*found.licence, *base.licence} - {"sharing"} if found.licence.get(key) != base.licence.get(key)),
        *(["sharing"] if base.licence.get("sharing") == "allowed" != found.licence.get("sharing") else []),
        *(["access"] if found.gated and not base.gated else []),
        *(["domain"] if found.domain != base.domain else []),
    ]  # fmt: skip
    if bound:
        raise InputError(
            f"{at}: states other terms than the base, {base.id} of revision {base.revision} ({', '.join(bound)}), and an export states "
            "those of the base alone; name a guide under the same"
        )
    sizes = _sizes(found, at)
    own = _sizes(base, f"base: {base.id}")
    differ = [name for name in SAME if getattr(sizes, name) != getattr(own, name)]
    differ += [] if found.tile_size_px == base.tile_size_px else ["tile_size_px"]
    differ += [] if found.resolution_mpp == base.resolution_mpp else ["resolution_mpp"]
    differ += [] if _same_encoder(found, base) else ["encoder"]
    if differ:
        raise InputError(
            f"{at}: takes other latents or conditions than the base, {base.id} of revision {base.revision} ({', '.join(differ)}); name "
            "one with the same encoder and autoencoder"
        )
    return found, sizes


def guide_of(wanted: Guided, base: ModelFolder, sit: SiT, vae: VAE) -> tuple[Guide, dict[str, Any]]:
    """What guides, with `sit` and `vae` (the base's) as they are now, and who it is with what it learnt from, for the export. InputError
    as `guide_folder`, and where its autoencoder makes other latents.
    """
    folder, _ = guide_folder(wanted, base)
    try:
        model = load_model(folder, device=torch.device("cpu"))
    except InputError as error:
        raise _named(error) from None
    if not _alike(sit.bn.state_dict(), model.sit.bn.state_dict()) or not _alike(_encoding(vae), _encoding(model.vae)):
        raise InputError(
            f"finetune.guided.by: {wanted.by.name}: its autoencoder encodes tiles, or its SiT normalises latents, in another way than "
            f"those of the base, {base.id} of revision {base.revision}; name one that was trained on the same latents"
        )
    # In one flat list: lineages would double with every guide.
    sets = list[dict[str, Any]]()
    for _, own in ancestry(folder.config.get("training")):
        sets += [known for known in own if known not in sets]
    noted = {"id": folder.id, "revision": folder.revision, "sha256": folder.sha256, "training": {"sets": sets}}
    return Guide(copy.deepcopy(sit).eval().requires_grad_(False), model.sit, wanted.scale), noted


def guided_by(guide: Guide, noted: Mapping[str, Any]) -> str:
    """For the card, after what learns."""
    which = f"{noted['id']}, revision {noted['revision']} ({noted['sha256'][:12]})"
    return f"to draw as if guided away from {which}, with scale {guide.scale:g}"


def _named(error: InputError) -> InputError:
    return InputError(f"finetune.guided.by: {str(error).removeprefix('model: ')}")


def _sizes(folder: ModelFolder, at: str) -> SiTConfig:
    given = {key: value for key, value in folder.config["sit"].items() if key != "id"}
    try:
        with torch.device("meta"):
            return sit_from_dict(given).config
    except (ValidationError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{at}: config.json: sit: {str(error).splitlines()[0]}") from None


def _same_encoder(one: ModelFolder, other: ModelFolder) -> bool:
    """By weights where both state them, else by name."""
    known = one.encoder["sha256"], other.encoder["sha256"]
    return known[0] == known[1] if all(known) else repo_of(one.encoder["id"]) == repo_of(other.encoder["id"])


def _encoding(vae: VAE) -> dict[str, Tensor]:
    """The half that makes latents; decoders may differ."""
    halves = ("kl.encoder.", "kl.quant_conv.")
    return {"factor": torch.tensor(vae.config.factor)} | {
        name: value for name, value in vae.state_dict().items() if name.startswith(halves)
    }


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value.cpu(), other[name].cpu()) for name, value in one.items()
    )
