"""Whether `network:` of a config describes a network: told before anything is written, at the place where it stands in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from synthfactory.model.sit import SiTConfig, sit_from_dict
from synthfactory.model.vae import VAEConfig, vae_from_dict
from synthfactory.model.vit import ViTConfig, vit_from_dict
from synthfactory.spec.faults import faults_of

FORMS: dict[str, tuple[type[BaseModel], Callable[[dict[str, Any]], nn.Module]]] = {
    "encoder": (ViTConfig, vit_from_dict), "vae": (VAEConfig, vae_from_dict), "diffusion": (SiTConfig, sit_from_dict),
    "repa-e": (SiTConfig, sit_from_dict),
}  # fmt: skip


def faults_of_network(mode: str, sizes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(path, what is wrong) of every fault; nothing is allocated."""
    form, build = FORMS[mode]
    try:
        given = form.model_validate(sizes)
        width, heads = getattr(given, "width", 0), getattr(given, "heads", 1)
        if heads < 1 or width % heads:
            return [("network.heads", f"must divide width ({width})")]
        with torch.device("meta"):
            build(dict(sizes))
    except ValidationError as error:
        return [(f"network.{path}", what) for path, what in faults_of(form, error)]
    except (ValueError, RuntimeError) as error:
        return [("network", str(error).splitlines()[0])]
    return []
