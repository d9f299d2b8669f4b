"""Do a pipeline's configurations fit its weights? diffusers itself only warns, and draws what is missing at random.

Before a build: each component is built on the meta device (names and shapes, no memory) and compared with its safetensors' headers;
a repository's own class is imported for that, so this runs its code. After loading: the same once more, on what was loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module
from filelock import FileLock
from torch import nn

from synthfactory.model.convert import current_vae_name
from synthfactory.model.files import shapes_in
from synthfactory.model.hub import fetched
from synthfactory.model.pipeline import INDEX, PipelineRepo
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import cache_folder

AGAIN = "name another revision"
Shapes = Mapping[str, tuple[int, ...]]


def check_components(repo: PipelineRepo) -> None:
    """InputError where a component's config.json and weights do not fit. Components that cannot be built without memory are left out."""
    listed = json.loads((repo.root / INDEX).read_bytes())
    with code_lock():
        fetched(repo.pin, (path for path in repo.files if not path.endswith(".safetensors")))  # code, as it is run now
        for name, entry in listed.items():
            if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
                module = _on_meta(repo, name, *entry)
                if module is not None:
                    _compare(repo, name, module)


def code_lock() -> FileLock:
    """One process of a machine at a time: diffusers runs a copy of a repository's code, which it writes to one place for all."""
    path = cache_folder() / "hub" / "pipeline.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def check_loaded(repo: PipelineRepo, components: Mapping[str, Any]) -> None:
    """The same for a pipeline that was loaded."""
    for name, part in components.items():
        if isinstance(part, nn.Module):
            _compare(repo, name, part)


def _on_meta(repo: PipelineRepo, name: str, library: str, class_name: str) -> nn.Module | None:
    folder = repo.root / name
    own = folder / f"{library}.py"
    try:
        if library == "diffusers":
            kind = getattr(diffusers, class_name)
        elif own.is_file():
            kind = get_class_from_dynamic_module(str(folder), own.name, class_name=class_name, trust_remote_code=True)
        else:
            return None
        with torch.device("meta"):
            made = kind.from_config(json.loads((folder / "config.json").read_bytes()))
    except Exception:  # noqa: BLE001  what a constructor cannot do without memory proves nothing; loading will tell
        return None
    return made if isinstance(made, nn.Module) else None


def _compare(repo: PipelineRepo, name: str, module: nn.Module) -> None:
    stored: dict[str, tuple[int, ...]] = {}
    for path in sorted((repo.root / name).glob("*.safetensors")):
        stored.update({current_vae_name(key): shape for key, shape in shapes_in(path, AGAIN).items()})
    if not stored:
        return
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = sorted(wanted.keys() - stored.keys())
    if missing:
        raise InputError(
            f"{repo.id}: {name}: its weights lack {missing[0]} ({len(missing)} such), which its config.json asks for and which would "
            f"be drawn at random; {AGAIN}"
        )
    other = sorted(key for key in wanted if _plain(wanted[key]) != _plain(stored[key]))
    if other:
        raise InputError(
            f"{repo.id}: {name}: its weights have {other[0]} of shape {stored[other[0]]}, its config.json asks for "
            f"{wanted[other[0]]}; {AGAIN}"
        )
    left = sorted(stored.keys() - wanted.keys())
    if left:
        raise InputError(
            f"{repo.id}: {name}: its weights hold {left[0]} ({len(left)} such), which its config.json has no place for; {AGAIN}"
        )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without trailing ones: older files hold attention's linear layers as 1 x 1 convolutions."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
