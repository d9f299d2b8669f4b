"""Does a model load? Asked before anything is written: an output that a broken model began would belong to it for good."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from synthfactory.model.files import shapes_in
from synthfactory.model.folder import ModelFolder
from synthfactory.model.sit import sit_from_dict
from synthfactory.model.vae import vae_from_dict
from synthfactory.model.vit import vit_from_dict
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

MAKERS = {"sit": sit_from_dict, "vae": vae_from_dict, "encoder": vit_from_dict}


def check_model(spec: Spec, folder: ModelFolder) -> None:
    """InputError at the spec's model where a weight file is missing, differs from its hash, or does not fit config.json.

    Reads every file once for its hash, then names and shapes only: no weight is held in memory.
    """
    try:
        folder.check_files()
        for part in folder.parts:
            _check_part(folder, part)
    except InputError as error:
        raise spec.error("model", str(error).removeprefix("model: ")) from None


def _check_part(folder: ModelFolder, part: str) -> None:
    path = folder.path / f"{part}.safetensors"
    wanted = _shapes(_on_meta(folder, part))
    found = shapes_in(path, "export the model again")
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        what = f"has {found.get(wrong[0])}, config.json needs {wanted.get(wrong[0])}"
        raise InputError(
            f"{path}: does not fit config.json: {wrong[0]} {what} ({len(wrong)} such); export the model again"
        )


def _on_meta(folder: ModelFolder, part: str) -> nn.Module:
    values: dict[str, Any] = {key: value for key, value in folder.config[part].items() if key != "id"}
    try:
        with torch.device("meta"):
            return MAKERS[part](values)
    except (ValidationError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else None
        text = f"{'.'.join(map(str, why['loc']))}: {why['msg']}" if why else str(error).splitlines()[0]
        raise InputError(f"{folder.path / 'config.json'}: {part}: {text}; export the model again") from None


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
