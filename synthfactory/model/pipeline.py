"""A repository of the Hub that brings its own diffusers pipeline, as CytoSyn is published: read, pinned and checked, but not run.

Nothing here executes the repository's code: what its __call__ takes is read off the source. sample/official.py runs it. No torch.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from synthfactory.model.files import shapes_in
from synthfactory.model.hub import PICKLES, SUFFIXES, Pin, fetched
from synthfactory.model.licence import licence_of
from synthfactory.spec.errors import InputError
from synthfactory.spec.model import Pipeline

INDEX, DEFAULT_ENTRY = "model_index.json", "pipeline.py"
MAX_SOURCE_BYTES = 1 << 20
LATENTS, GENERATORS = (
    "latents",
    "generator",
)  # diffusers' names for a batch's starting noise, and for its streams of noise


@dataclass(frozen=True)
class PipelineRepo:
    """What a pinned pipeline says of itself. `arguments` are the names that its __call__ takes, `entry` is the file it stands in."""

    pin: Pin
    form: Pipeline
    root: Path
    entry: str
    class_name: str
    arguments: tuple[str, ...]
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
    _refuse_pickles(pinned)
    root = fetched(pinned, (path for path in pinned.named(*SUFFIXES) if not path.endswith(".safetensors")))
    module, class_name = _class_of(root / INDEX)
    entry = f"{module}.py" if module and f"{module}.py" in pinned.files else DEFAULT_ENTRY
    if entry not in pinned.files:
        raise InputError(
            f"{pinned.repo}: has no {DEFAULT_ENTRY} at {pinned.commit}; the official backend runs that file"
        )
    arguments = _arguments(root / entry, class_name, pinned.repo)
    if form.embeds not in arguments:
        raise InputError(
            f"{pinned.repo}: its pipeline takes no '{form.embeds}' (it takes {', '.join(arguments) or 'nothing'}); "
            "name the argument for embeddings under model.pipeline.embeds"
        )
    return PipelineRepo(pinned, form, root, entry, class_name, arguments)


def _refuse_pickles(pinned: Pin) -> None:
    """Weights in pickles are never loaded; a component that has no others is refused by name."""
    safe = {str(PurePosixPath(path).parent) for path in pinned.named(".safetensors")}
    bare = [path for path in pinned.named(*PICKLES) if str(PurePosixPath(path).parent) not in safe]
    if bare:
        raise InputError(
            f"{pinned.repo}: holds weights as a pickle only ({bare[0]}), which could run code when read; ask its authors for "
            "safetensors, or name a revision that has them"
        )
    if not safe:
        raise InputError(
            f"{pinned.repo}: holds no safetensors at {pinned.commit}; name a revision that has its weights"
        )


def _class_of(index: Path) -> tuple[str | None, str]:
    """(module or None, class) of the pipeline, from model_index.json."""
    try:
        with open(index, "rb") as handle:
            named = json.loads(handle.read(MAX_SOURCE_BYTES))["_class_name"]
        module, class_name = (None, named) if isinstance(named, str) else named
        if not (isinstance(class_name, str) and (module is None or str(module).isidentifier())):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{index}: names no pipeline class (_class_name); fetch it again, or name another revision"
        ) from None
    return module, class_name


def _arguments(source: Path, class_name: str, repo: str) -> tuple[str, ...]:
    """Names that the class's __call__ takes, read off the source. Nothing is run."""
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
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__call__":
            listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            return tuple(argument.arg for argument in listed if argument.arg != "self")
    raise InputError(
        f"{repo}: class {class_name} in {source.name} has no __call__ of its own; the official backend calls it"
    )
