"""Guidance learnt into weights: a SiT learns to draw by itself what its base draws when it is guided away from a weaker model.

What two models of the same tiles agree on is sound, and where the weaker one falls further short the better one falls short the same way:
so the step from the weaker to the better one, taken a little further, mends what both do badly (autoguidance, arXiv 2406.02507; classifier-
free guidance, where the weaker model does not know the condition, sharpens the condition instead). The guided velocity is the aim of the
loss in the place of the data's own (distillation of guidance, arXiv 2210.03142): it has no noise in it, so that few tiles a step are
enough, and drawing costs no second network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthfactory.model.find import find_model
from synthfactory.model.folder import ModelFolder
from synthfactory.model.sit import SiT
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError
from train.config import Guided
from train.place import Place, wide

SAME = ("latent_channels", "latent_size", "condition_width", "condition_mean", "condition_std")


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


def guide_folder(wanted: Guided, base: ModelFolder) -> ModelFolder:
    """The weaker model. InputError where it cannot guide the base, or where its terms are others: they would have to travel along."""
    at = f"finetune.guided.by: {wanted.by.name}"
    try:
        found = find_model(wanted.by)
    except InputError as error:
        raise InputError(f"finetune.guided.by: {str(error).removeprefix('model: ')}") from None
    if not isinstance(found, ModelFolder):
        raise InputError(f"{at}: is run by its own pipeline; convert a copy of it with `synthfactory model import`")
    if found.sha256 == base.sha256:
        raise InputError(
            f"{at}: is the base itself; name one that draws less well, for example what it was trained from"
        )
    if found.gated or base.gated or found.licence != base.licence:
        stated = (str(each.licence.get("name")) + " (gated)" * each.gated for each in (found, base))
        raise InputError(
            f"{at}: is under {', the base under '.join(stated)}; both must be under the same terms, and not gated"
        )
    differ = [name for name in SAME if found.config["sit"].get(name) != base.config["sit"].get(name)]
    if differ or found.encoder["id"] != base.encoder["id"]:
        raise InputError(
            f"{at}: takes other latents or conditions than {base.id} ({', '.join(differ) or 'encoder'}); name one with the same "
            "encoder and autoencoder"
        )
    return found


def guide_of(wanted: Guided, base: ModelFolder, sit: SiT) -> tuple[Guide, dict[str, Any]]:
    """What guides, with `sit` (the base's) as it is now, and who it is with what it learnt from. InputError as `guide_folder`."""
    folder = guide_folder(wanted, base)
    weaker = load_model(folder, device=torch.device("cpu")).sit
    for name, buffer in sit.bn.named_buffers():
        if name != "num_batches_tracked" and not torch.equal(buffer, weaker.bn.get_buffer(name)):
            raise InputError(
                f"finetune.guided.by: {folder.id} normalises latents in another way than {base.id}; name another"
            )
    frozen = copy.deepcopy(sit).eval().requires_grad_(False)
    known = {
        "id": folder.id,
        "revision": folder.revision,
        "sha256": folder.sha256,
        "training": folder.config.get("training"),
    }
    return Guide(frozen, weaker, wanted.scale), known


def guided_by(guide: Guide, known: Mapping[str, Any]) -> str:
    """For the card, after what learns."""
    which = f"{known['id']}, revision {known['revision']} ({known['sha256'][:12]})"
    return f"to draw as if guided away from {which}, with scale {guide.scale:g}"
