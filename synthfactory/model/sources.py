"""Weights of others, read for `model import`: a REPA-E checkpoint (.pt), or a folder or Hub repository in diffusers' form.

A checkpoint is opened by torch.load(weights_only=True), which builds tensors and plain containers and refuses everything else. No code
of a repository is run.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from synthfactory.model.files import shapes_in
from synthfactory.model.hub import fetched, pin
from synthfactory.model.licence import NOT_STATED, licence_of
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import hub_name, is_hub

State = dict[str, Tensor]
NETWORK_FOLDERS = ("transformer", "sit", "unet")  # the first that is there
MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """What was found: tensors of network and autoencoder under their own names, their configurations ({}: none), and terms."""

    sit: State
    vae: State
    sit_config: Mapping[str, Any]
    vae_config: Mapping[str, Any]
    licence: dict[str, Any]
    gated: bool = False
    origin: dict[str, str] = field(default_factory=dict)  # what may be published of where it came from


def read_source(name: str, *, weights: str = "ema") -> Source:
    """Reads FILE.pt, a folder, or hf://OWNER/REPO[@REV]. `weights` picks ema or model from a checkpoint. InputError as the module says."""
    if is_hub(name):
        return _from_hub(name)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _from_folder(path, {"name": NOT_STATED, "sharing": "local"})
    if path.is_file():
        return _from_checkpoint(path, weights)
    raise InputError(f"{name}: no such file or folder; name a checkpoint (.pt), a diffusers folder, or hf://OWNER/REPO")


def _from_hub(name: str) -> Source:
    try:
        pinned = pin(hub_name(name))
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from None
    root = fetched(pinned, pinned.named(".json", ".safetensors"))
    found = _from_folder(root, licence_of(pinned.repo, pinned.licence))
    origin = {"repository": pinned.repo, "commit": pinned.commit}
    return Source(found.sit, found.vae, found.sit_config, found.vae_config, found.licence, pinned.gated, origin)


def _from_folder(root: Path, licence: dict[str, Any]) -> Source:
    network = next((root / part for part in NETWORK_FOLDERS if (root / part).is_dir()), None)
    if network is None or not (root / "vae").is_dir():
        raise InputError(
            f"{root}: is no diffusers folder: transformer/ and vae/ are needed, each with config.json and safetensors"
        )
    return Source(_tensors(network), _tensors(root / "vae"), _config(network), _config(root / "vae"), licence)


def _tensors(folder: Path) -> State:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".ckpt", ".pth"))
        what = f"only {pickles[0]}, a pickle, which is not read" if pickles else "no weights"
        raise InputError(f"{folder}: holds {what}; safetensors are needed")
    whole = [path for path in files if ".fp16." not in path.name and ".bf16." not in path.name] or files
    found: State = {}
    for path in whole:
        shapes_in(path, "fetch it again")
        part = load_file(path)
        doubled = found.keys() & part.keys()
        if doubled:
            raise InputError(
                f"{path}: holds {min(doubled)}, as another file beside it does; keep one set of weights there"
            )
        found.update(part)
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        with open(folder / "config.json", "rb") as handle:
            found = json.loads(handle.read(MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{folder}/config.json: is missing or no JSON; fetch the folder again") from None
    if not isinstance(found, dict):
        raise InputError(f"{folder}/config.json: is no JSON object; fetch the folder again")
    return found


def _from_checkpoint(path: Path, weights: str) -> Source:
    try:
        with warnings.catch_warnings():  # on how the file was pickled; what matters is said below
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:
        why = (
            "holds objects other than tensors"
            if "weights_only" in str(error).lower()
            else "is no whole torch checkpoint"
        )
        raise InputError(
            f"{path}: {why}, so it is not read (a pickle can run code); ask for safetensors, or for a checkpoint of tensors alone"
        ) from None
    if not isinstance(found, dict) or weights not in found or "vae" not in found:
        keys = ", ".join(sorted(map(str, found))[:12]) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{path}: is no REPA-E checkpoint with '{weights}' and 'vae'; it holds: {keys or 'nothing'}")
    return Source(
        _plain(found[weights], path, weights),
        _plain(found["vae"], path, "vae"),
        {},
        {},
        {"name": NOT_STATED, "sharing": "local"},
    )


def _plain(state: Any, path: Path, part: str) -> State:
    """Tensors only; the prefixes that data-parallel training and torch.compile leave are taken off."""
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: its '{part}' is no mapping of tensors")
    found: State = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise InputError(
                f"{path}: its '{part}' holds {str(name)[:80]}, which is no tensor; ask for a checkpoint of tensors alone"
            )
        plain = name
        for prefix in ("module.", "_orig_mod."):
            plain = plain.removeprefix(prefix)
        found[plain] = value
    return found
