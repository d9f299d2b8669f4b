"""Weights of others, read for `model import`: a REPA-E checkpoint (.pt), or a folder or Hub repository in diffusers' form.

A checkpoint is opened by torch.load(weights_only=True), which builds tensors and plain containers and refuses everything else; only
what training scripts are known to keep beside their weights (`args`) is passed over. No code of a repository is run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from synthfactory.model.files import shapes_in
from synthfactory.model.hub import fetched, pin
from synthfactory.model.licence import NOT_STATED, licence_of
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import hub_name, is_hub, short_problem
from synthfactory.spec.json_text import read_json
from synthfactory.spec.text import shown

State = dict[str, Tensor]
NETWORK_FOLDERS = ("transformer", "sit", "unet")  # the first that is there
MAX_JSON_BYTES = 1 << 20
# What the `args` of a training script are made of: a namespace, paths, numpy's numbers. None of it is needed.
PASSED_OVER = (
    "argparse.Namespace",
    *(f"{m}.{kind}Path" for m in ("pathlib", "pathlib._local") for kind in ("", "Pure", "Posix", "Windows", "PurePosix", "PureWindows")),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
)  # fmt: skip
WHOLE_NUMBERS = "num_batches_tracked"  # the one tensor of a network that holds no weights


class _PassedOver:
    """Stands for an object of a checkpoint that is none of ours to build; whatever the file says of it is dropped."""

    def __new__(cls, *given: object) -> _PassedOver:
        return super().__new__(cls)

    def __init__(self, *given: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


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
    problem = short_problem(name)
    if problem:
        raise InputError(f"{name}: {problem}")
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
        try:
            part = {name: _weights(value, path, name) for name, value in load_file(path).items()}
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # a number format that nobody knows, say
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: is no safetensors file ({shown(str(error), 200)}); fetch it again") from None
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
            found = read_json(handle.read(MAX_JSON_BYTES))
    except (OSError, ValueError):
        raise InputError(f"{folder}/config.json: is missing or no JSON; fetch the folder again") from None
    if not isinstance(found, dict):
        raise InputError(f"{folder}/config.json: is no JSON object; fetch the folder again")
    return found


def _from_checkpoint(path: Path, weights: str) -> Source:
    try:
        known: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(_PassedOver, name) for name in PASSED_OVER]
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")  # on how the file was pickled; what matters is said below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a damaged or crafted file may end in any of them
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
        value = _weights(value, path, name)
        for prefix in ("module.", "_orig_mod."):
            plain = plain.removeprefix(prefix)
        found[plain] = value
    return found


def _weights(value: Tensor, path: Path, name: str) -> Tensor:
    """The tensor itself; InputError where it holds no numbers that a network could compute with."""
    if value.layout != torch.strided or value.device.type == "meta" or value.is_quantized or value.is_nested:
        what = "is no plain tensor in memory (sparse, quantised, nested or on the meta device)"
    elif value.untyped_storage().nbytes() < value.numel() * value.element_size():  # a few bytes that say to be many
        what = "is larger than what is stored of it"
    elif name.endswith(WHOLE_NUMBERS):
        return value
    elif not value.is_floating_point():
        what = f"holds {str(value.dtype).removeprefix('torch.')} and no real numbers"
    elif not bool(torch.isfinite(value.float()).all()):
        what = "holds numbers that are not finite"
    else:
        return value
    raise InputError(f"{path}: {shown(name)} {what}; nothing was written; ask for other weights")
