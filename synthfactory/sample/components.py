"""Does a pipeline's code load, and do its configurations fit its weights? diffusers itself only warns, and draws what is missing at random.

Before a build: the pipeline's code is imported, each component is built on the meta device (names and shapes, no memory) and compared
with its safetensors' headers; so this runs the repository's code. After loading: the same once more, on what was loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module
from filelock import FileLock
from torch import nn

from synthfactory.model.convert import current_vae_name
from synthfactory.model.files import shapes_in
from synthfactory.model.hub import fetched
from synthfactory.model.pipeline import INDEX, PipelineRepo, json_object
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import cache_folder
from synthfactory.spec.text import shown

AGAIN = "name another revision"


def check_components(repo: PipelineRepo) -> None:
    """InputError where the code cannot be imported, or a component is missing, cannot be built, or does not fit its weights.

    Components of other libraries than diffusers are only looked for.
    """
    with code_lock():
        fetched(repo.pin, (path for path in repo.files if not path.endswith(".safetensors")))  # code, as it is run now
        with foreign(repo, f"{repo.entry} cannot be imported"):
            get_class_from_dynamic_module(
                str(repo.root), repo.entry, class_name=repo.class_name, trust_remote_code=True
            )
        for name, (library, class_name) in repo.components.items():
            kind = _kind(repo, name, library, class_name)
            module = None if kind is None else _on_meta(repo, name, kind)
            if module is not None:
                _compare(repo, name, module)


@contextmanager
def foreign(repo: PipelineRepo, what: str) -> Iterator[None]:
    """Code of the repository at work. Whatever it raises is one InputError; ending the process (SystemExit) is no way to succeed."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        why = shown(next(iter(str(error).splitlines()), ""), 300)
        said = (
            f"its code would end this process, status {why}"
            if isinstance(error, SystemExit)
            else f"{type(error).__name__}: {why}"
        )
        raise InputError(
            f"{repo.id} at {repo.revision}: {what} ({said}); try another revision, or other versions of diffusers and torch"
        ) from error


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


def _kind(repo: PipelineRepo, name: str, library: str, class_name: str) -> Any:
    """The component's class; None where it is another library's."""
    own = repo.root / name / f"{library}.py"
    if own.is_file():
        with foreign(repo, f"{name}/{own.name} cannot be imported"):
            return get_class_from_dynamic_module(
                str(own.parent), own.name, class_name=class_name, trust_remote_code=True
            )
    with foreign(repo, f"{name}: {INDEX} names {library}.{class_name}, which cannot be found here"):
        if library == "diffusers":
            return getattr(diffusers, class_name)
        if not hasattr(diffusers.pipelines, library) and importlib.util.find_spec(library.partition(".")[0]) is None:
            raise ModuleNotFoundError(f"no module {library}")
    return None


def _on_meta(repo: PipelineRepo, name: str, kind: Any) -> nn.Module | None:
    """The component without memory; None where it is no network."""
    file = getattr(kind, "config_name", None)
    if not (isinstance(file, str) and hasattr(kind, "from_config")):
        return None
    config = json_object(repo.root / name / file, repo.id)
    try:
        with torch.device("meta"):
            made = kind.from_config(config)
    except (Exception, SystemExit):  # noqa: BLE001  a constructor may need memory: then it gets some, and must succeed
        with foreign(repo, f"{name}: cannot be built from its {file}"), torch.random.fork_rng(devices=[]):
            made = kind.from_config(config)
    return made if isinstance(made, nn.Module) else None


def _compare(repo: PipelineRepo, name: str, module: nn.Module) -> None:
    stored: dict[str, tuple[int, ...]] = {}
    for path in sorted((repo.root / name).glob("*.safetensors")):
        stored.update({current_vae_name(key): shape for key, shape in shapes_in(path, AGAIN).items()})
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = sorted(wanted.keys() - stored.keys())
    if not stored and name not in repo.components:
        return  # made by the pipeline itself, without a folder
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
