"""Does a model load? Asked before anything is written: an output that a broken model began would belong to it for good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from synthfactory.model.encoder import EncoderFolder, encoder_of
from synthfactory.model.files import shapes_in
from synthfactory.model.find import Opened
from synthfactory.model.folder import CONFIG, ModelFolder
from synthfactory.model.sit import sit_from_dict
from synthfactory.model.vae import vae_from_dict
from synthfactory.model.vit import vit_from_dict
from synthfactory.model.weights import misfit, timm_size
from synthfactory.sample.components import check_components
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec
from synthfactory.spec.text import shown

MAKERS = {"sit": sit_from_dict, "vae": vae_from_dict, "encoder": vit_from_dict}


def check_model(spec: Spec, model: Opened, encoder: EncoderFolder | None) -> None:
    """InputError at the spec's model where a file is missing, differs from its hash, or does not fit its configuration,
    or holds numbers that are not finite.

    Fetches what is not here and reads every file once for its hash, then names, shapes and whether all numbers are finite; one tensor is
    held at a time. Of a repository's own pipeline the classes of its components are run, on the meta device.
    """
    try:
        model.check_files()
        if isinstance(model, ModelFolder):
            for part in model.parts[:2]:
                values = {key: value for key, value in model.config[part].items() if key != "id"}
                _check_part(part, values, model.path / f"{part}.safetensors", model.path / CONFIG)
            encoder = encoder or (encoder_of(model) if model.has_encoder else None)
        else:
            check_components(model)
            for path in model.weights:
                _check_finite(model.root / path, "name another revision")
        if encoder is not None:
            _check_encoder(encoder)
    except InputError as error:
        raise spec.error("model", str(error).removeprefix("model: ")) from None


def _check_encoder(encoder: EncoderFolder) -> None:
    encoder.check()
    path = encoder.weights
    values = encoder.size
    if values is None:
        values = timm_size(shapes_in(path, "fetch it again"), encoder)
    _check_part("encoder", values, path, path.parent / CONFIG)


def _check_part(part: str, values: Mapping[str, Any], path: Path, config: Path) -> None:
    try:
        differs = misfit(lambda: MAKERS[part](dict(values)), path)
    except InputError:
        raise
    except (ValidationError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else None
        text = f"{'.'.join(map(str, why['loc']))}: {why['msg']}" if why else str(error).splitlines()[0]
        raise InputError(f"{config}: {part}: {text}; export the model again") from None
    if differs:
        raise InputError(f"{path}: does not fit config.json: {differs}; export the model again")
    _check_finite(path, "export the model again")


def _check_finite(path: Path, again: str) -> None:
    """One NaN makes every tile grey, or every score NaN. One tensor is held at a time."""
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                value = tensors.get_tensor(name)
                if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
                    raise InputError(f"{path}: {shown(name)} holds numbers that are not finite; {again}")
    except SafetensorError as error:
        raise InputError(f"{path}: is no safetensors file ({shown(str(error), 200)}); {again}") from None
