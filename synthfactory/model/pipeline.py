"""A repository of the Hub that brings its own diffusers pipeline, as CytoSyn is published: read, pinned and checked, but not run.

Nothing here executes the repository's code: what its __call__ takes is read off the source. sample/official.py runs it. No torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from synthfactory.model.files import shapes_in
from synthfactory.model.hub import PICKLES, SUFFIXES, Pin, fetched
from synthfactory.model.licence import licence_of
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.model import Pipeline
from synthfactory.spec.text import shown

INDEX, DEFAULT_ENTRY = "model_index.json", "pipeline.py"
PARTS_INDEX = ".safetensors.index.json"
MAX_SOURCE_BYTES = 1 << 20
LATENTS, GENERATORS = (
    "latents",
    "generator",
)  # diffusers' names for a batch's starting noise, and for its streams of noise


@dataclass(frozen=True)
class PipelineRepo:
    """What a pinned pipeline says of itself. `arguments` are the names that its __call__ takes, `entry` is the file it stands in.

    `components` are those that model_index.json names: folder -> (library, class).
    """

    pin: Pin
    form: Pipeline
    root: Path
    entry: str
    class_name: str
    arguments: tuple[str, ...]
    components: Mapping[str, tuple[str, str]]
    backend: str = field(default="official", init=False)
    seconds_per_call: float | None = field(default=None, init=False)
    domain: str | None = field(default=None, init=False)

    @property
    def id(self) -> str:
        """OWNER/REPO."""
        return self.pin.repo

    @property
    def revision(self) -> str:
        """The commit, 40 hex digits."""
        return self.pin.commit

    @property
    def files(self) -> list[str]:
        """The files that it is made of: code, configurations, safetensors."""
        return self.pin.named(*SUFFIXES)

    @property
    def weights(self) -> list[str]:
        """The safetensors of its components."""
        return [path for path in self.pin.named(".safetensors") if _component(path) in self.components]

    @property
    def sha256(self) -> str:
        """Identity: repository, commit, and the blob ids of `files`."""
        return self.pin.identity(self.files)

    @property
    def condition_width(self) -> int:
        """Width of the embeddings that condition it."""
        return self.form.condition_width

    @property
    def tile_size_px(self) -> int:
        """Side of a tile in pixels."""
        return self.form.tile_size_px

    @property
    def resolution_mpp(self) -> float:
        """Micrometres per pixel."""
        return self.form.resolution_mpp

    @property
    def licence(self) -> dict[str, Any]:
        """Terms that travel with every artefact."""
        return licence_of(self.pin.repo, self.pin.licence)

    @property
    def gated(self) -> bool:
        """Whether access must be asked for."""
        return self.pin.gated

    @property
    def encoder(self) -> dict[str, str]:
        """Who made the embeddings that fit: id, sha256 ('': only the name is known), token."""
        return {"id": self.form.encoder_id, "sha256": "", "token": "class"}

    @property
    def noise(self) -> str:
        """What of a candidate's noise we give it: start (where it takes `latents`), streams (`generator`), both, or none."""
        takes = (LATENTS in self.arguments, GENERATORS in self.arguments)
        return {(True, True): "start and streams", (True, False): "start", (False, True): "streams"}.get(takes, "none")

    def check_files(self) -> None:
        """Fetches what is not here, compares every file with its blob id, and reads every safetensors header; InputError as they say."""
        fetched(self.pin, self.files)
        for name in self.pin.named(".safetensors"):
            shapes_in(self.root / name, f"the file is like that in {self.pin.repo} itself, so try another revision")


def open_pipeline(pinned: Pin, form: Pipeline) -> PipelineRepo:
    """Reads index and code of a pinned repository, fetching them where needed. InputError where it is no pipeline that we can call."""
    if INDEX not in pinned.files:
        raise InputError(
            f"{pinned.repo}: has no {INDEX} at {pinned.commit}; it is no repository of a diffusers pipeline"
        )
    root = fetched(pinned, (path for path in pinned.named(*SUFFIXES) if not path.endswith(".safetensors")))
    index = json_object(root / INDEX, pinned.repo)
    module, class_name = _class_of(index, root / INDEX)
    components = {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in index.items()
        if not name.startswith("_")
        and isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(part, str) for part in entry)
    }
    _refuse_pickles(pinned, components)
    for name in components:
        if any(path.startswith(f"{name}/") for path in pinned.named(".safetensors")):
            json_object(root / name / "config.json", pinned.repo)
            _check_parts(pinned, root, name)
    entry = f"{module}.py" if module and f"{module}.py" in pinned.files else DEFAULT_ENTRY
    if entry not in pinned.files:
        raise InputError(
            f"{pinned.repo}: has no {DEFAULT_ENTRY} at {pinned.commit}; the official backend runs that file"
        )
    code = _class_in(root / entry, class_name, pinned.repo)
    absent = [name for name in _needed(code) if name not in components]
    if absent:
        raise InputError(
            f"{pinned.repo}: class {class_name} needs {absent[0]}, which {INDEX} names no component for; name another revision"
        )
    arguments = _arguments(code)
    if arguments is None:
        raise InputError(
            f"{pinned.repo}: class {class_name} in {entry} has no __call__ of its own; the official backend calls it"
        )
    if form.embeds not in arguments:
        raise InputError(
            f"{pinned.repo}: its pipeline takes no '{form.embeds}' (it takes {', '.join(arguments) or 'nothing'}); "
            "name the argument for embeddings under model.pipeline.embeds"
        )
    return PipelineRepo(pinned, form, root, entry, class_name, arguments, components)


def _component(path: str) -> str:
    return path.partition("/")[0]


def json_object(path: Path, repo: str) -> dict[str, Any]:
    """A JSON file of a repository. InputError where it is missing, or holds something else."""
    name = f"{repo}: {path.name if path.name == INDEX else f'{path.parent.name}/{path.name}'}"
    try:
        with open(path, "rb") as handle:
            found = read_json(handle.read(MAX_SOURCE_BYTES))
    except FileNotFoundError:
        raise InputError(f"{name}: is missing; name another revision") from None
    except (OSError, ValueError):
        raise InputError(f"{name}: is no JSON that can be read; name another revision") from None
    if not isinstance(found, dict):
        raise InputError(f"{name}: is no JSON object; name another revision")
    return found


def _check_parts(pinned: Pin, root: Path, component: str) -> None:
    """Weights in parts: their index must name files that are there."""
    for path in pinned.named(PARTS_INDEX):
        if _component(path) != component:
            continue
        named = json_object(root / path, pinned.repo).get("weight_map")
        files = {str(file) for file in named.values()} if isinstance(named, dict) else set()
        absent = sorted(file for file in files if str(PurePosixPath(path).with_name(file or "-")) not in pinned.files)
        if absent or not files:
            what = f"{shown(absent[0])}, which is not there" if absent else "no files"
            raise InputError(f"{pinned.repo}: {path}: names {what}; name another revision")


def _refuse_pickles(pinned: Pin, components: Iterable[str]) -> None:
    """Weights in pickles are never loaded; a component that has no others is refused by name. Other pickles stay at the Hub."""
    named = set(components)
    safe = {str(PurePosixPath(path).parent) for path in pinned.named(".safetensors") if _component(path) in named}
    pickles = [path for path in pinned.named(*PICKLES) if _component(path) in named]
    bare = [path for path in pickles if str(PurePosixPath(path).parent) not in safe]
    if bare:
        raise InputError(
            f"{pinned.repo}: holds weights as a pickle only ({bare[0]}), which could run code when read; ask its authors for "
            "safetensors, or name a revision that has them"
        )
    if not safe:
        raise InputError(
            f"{pinned.repo}: holds no safetensors at {pinned.commit}; name a revision that has its weights"
        )


def _class_of(index: Mapping[str, Any], path: Path) -> tuple[str | None, str]:
    """(module or None, class) of the pipeline, from model_index.json."""
    try:
        named = index["_class_name"]
        module, class_name = (None, named) if isinstance(named, str) else named
        if not (isinstance(class_name, str) and (module is None or str(module).isidentifier())):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: names no pipeline class (_class_name); name another revision") from None
    return module, class_name


def _class_in(source: Path, class_name: str, repo: str) -> ast.ClassDef:
    """The class, read off the source. Nothing is run."""
    try:
        with open(source, "rb") as handle:
            tree = ast.parse(handle.read(MAX_SOURCE_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"{repo}: {source.name} is no Python that can be read; name another revision") from None
    bodies: Iterable[ast.ClassDef] = (node for node in tree.body if isinstance(node, ast.ClassDef))
    found = next((node for node in bodies if node.name == class_name), None)
    if found is None:
        raise InputError(
            f"{repo}: {source.name} defines no class {class_name}, which {INDEX} names; name another revision"
        )
    return found


def _method(code: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((node for node in code.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _arguments(code: ast.ClassDef) -> tuple[str, ...] | None:
    """Names that the class's __call__ takes; None where it has none of its own."""
    call = _method(code, "__call__")
    if call is None:
        return None
    listed = [*call.args.posonlyargs, *call.args.args, *call.args.kwonlyargs]
    return tuple(argument.arg for argument in listed if argument.arg != "self")


def _needed(code: ast.ClassDef) -> list[str]:
    """Components without which the pipeline cannot be made: what its __init__ takes without a default, unless it says optional."""
    init = _method(code, "__init__")
    if init is None:
        return []
    placed = [*init.args.posonlyargs, *init.args.args]
    needed = placed[: len(placed) - len(init.args.defaults)]
    needed += [one for one, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True) if default is None]
    optional = {
        part.value
        for node in code.body
        if isinstance(node, ast.Assign)
        and "_optional_components" in [getattr(target, "id", "") for target in node.targets]
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant)
    }
    return [argument.arg for argument in needed if argument.arg != "self" and argument.arg not in optional]
