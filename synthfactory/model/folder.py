"""A model on disk: a folder with config.json and safetensors, known by hash before anything is loaded (no torch here).

FOLDER/config.json {format, id, revision, tile_size_px, resolution_mpp, sit, vae, encoder, files: {name: sha256}, licence, training}
FOLDER/{sit,vae,encoder}.safetensors, FOLDER/README.md (the card), FOLDER/figures.json (what was measured: no part of the identity)
`encoder` may be {id} alone, without a file: the embeddings' maker is named then, and not part of the folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthfactory.model.config_check import PARTS, config_problem
from synthfactory.model.files import sha256_of
from synthfactory.model.hub import Pin, fetched
from synthfactory.shards.beside import beside
from synthfactory.shards.store import open_source
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import cache_folder, is_url

BUILT_IN = {"phantom": Path(__file__).parent / "weights" / "phantom"}
MAX_CONFIG_BYTES = 1 << 20
SECONDS_PER_CALL = (1e-9, 1e6)  # what is stated beyond is no measurement
CONFIG, FIGURES = "config.json", "figures.json"


@dataclass(frozen=True)
class ModelFolder:
    """What a model says of itself. `sha256` covers config.json, which names every weight file by sha256."""

    path: Path
    config: dict[str, Any]
    sha256: str
    figures: dict[str, Any] = field(default_factory=dict)
    url: str | None = None  # where it was opened by URL: `path` is then its cache on this machine
    pin: Pin | None = None  # where it was opened at the Hub: `path` is then the snapshot's folder
    backend: str = field(default="native", init=False)
    noise: str = field(default="start and streams", init=False)

    @property
    def id(self) -> str:
        """Name of the model, as published sets state it."""
        return str(self.config["id"])

    @property
    def revision(self) -> str:
        """Version of the weights: the Hub's commit, or what config.json says."""
        return self.pin.commit if self.pin else str(self.config["revision"])

    @property
    def condition_width(self) -> int:
        """Width of the embeddings that condition it."""
        return int(self.config["sit"]["condition_width"])

    @property
    def tile_size_px(self) -> int:
        """Side of a tile in pixels."""
        return int(self.config["tile_size_px"])

    @property
    def resolution_mpp(self) -> float:
        """Micrometres per pixel."""
        return float(self.config["resolution_mpp"])

    @property
    def domain(self) -> str | None:
        """What it draws, where that is not what its labels say (invented tissue, say); for cards and plans."""
        found = self.config.get("domain")
        return found if isinstance(found, str) and found.isprintable() and len(found) <= 200 else None

    @property
    def licence(self) -> dict[str, Any]:
        """Terms that travel with every artefact."""
        return dict(self.config["licence"])

    @property
    def gated(self) -> bool:
        """Whether access must be asked for at the Hub, here or where it was imported from."""
        return bool(self.licence.get("gated")) or (self.pin is not None and self.pin.gated)

    @property
    def has_encoder(self) -> bool:
        """Whether the encoder is part of the folder; else only its name is known."""
        return "encoder.safetensors" in self.config["files"]

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks that the folder holds."""
        return PARTS if self.has_encoder else PARTS[:2]

    @property
    def encoder(self) -> dict[str, str]:
        """Who made the embeddings that fit: id, sha256 of the weights ('' where only the name is known), token."""
        sha256 = self.config["files"].get("encoder.safetensors", "")
        return {"id": str(self.config["encoder"]["id"]), "sha256": str(sha256), "token": "class"}

    @property
    def seconds_per_call(self) -> float | None:
        """Measured seconds of one network call for one tile, on the machine that figures.json names.

        None where it was not measured, or what stands there is no such number.
        """
        timing = self.figures.get("timing")
        seconds = timing.get("seconds_per_call") if isinstance(timing, dict) else None
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            return None
        least, most = SECONDS_PER_CALL
        return float(seconds) if least <= seconds <= most else None

    def check_files(self, names: Iterable[str] | None = None) -> None:
        """Compares weight files (default: all) with their sha256 in config.json, fetching what a URL's cache lacks; InputError where
        one differs.
        """
        wanted_names = tuple(self.config["files"] if names is None else names)
        if self.pin:
            _check_listed(self.pin, wanted_names)
            fetched(self.pin, wanted_names)
        for name in wanted_names:
            path, wanted = self.path / name, self.config["files"][name]
            if self.url and not path.is_file():
                _fetch(f"{self.url}/{name}", path, wanted)
            if not path.is_file():
                raise InputError(f"model: {path}: is missing; export the model again")
            if sha256_of(path) != wanted:
                raise InputError(
                    f"model: {path}: differs from the sha256 in config.json; the file is damaged or swapped"
                )


def _check_listed(pinned: Pin, names: Iterable[str]) -> None:
    absent = [name for name in names if name not in pinned.files]
    if absent:
        raise InputError(f"model: {pinned.repo}: has no {absent[0]} at {pinned.commit}; export the model again")


def _fetch(url: str, path: Path, wanted: str) -> None:
    """Downloads a weight file into the cache; it has its name only when whole and of the wanted sha256."""
    try:
        with beside(path, shared=True) as place:
            with open_source(url) as source, open(place, "xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if sha256_of(place) != wanted:
                raise InputError(
                    f"model: {url}: differs from the sha256 in config.json; the file is damaged or swapped"
                )
    except FileNotFoundError:
        raise InputError(f"model: {url}: is missing; export the model again") from None
    except OSError as error:
        raise InputError(f"model: {url}: cannot be read ({error})") from None


def open_model(name: str) -> ModelFolder:
    """The built-in model of that name, or the model folder at that path or URL (whose weights are fetched when they are needed).

    InputError names what is wrong and what would be right.
    """
    url = name.rstrip("/") if is_url(name) else None
    path = BUILT_IN.get(name, Path(os.path.expanduser(name)))
    try:
        with open_source(f"{url}/{CONFIG}" if url else str(path / CONFIG)) as handle:
            raw = handle.read(MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        if name in BUILT_IN:
            raise InputError(f"model: {name}: its weights are not installed; reinstall the package") from None
        known = ", ".join(BUILT_IN)
        if url is None and (path / "checkpoints").is_dir():
            raise InputError(
                f"model: '{name}': is a run of synthfactory-train; `synthfactory-train export {name} MODEL --id ID`, and name MODEL"
            ) from None
        raise InputError(
            f"model: '{name}': neither a built-in model ({known}) nor a folder with config.json, as `synthfactory-train export` writes "
            "(a repository of the Hub is hf://OWNER/REPO, or cytosyn)"
        ) from None
    except OSError as error:
        raise InputError(f"model: {name}: config.json cannot be read ({error.strerror or error})") from None
    try:
        config = read_json(raw)
    except ValueError:
        raise InputError(f"model: {url or path}/config.json: is no JSON; export the model again") from None
    problem = config_problem(config)
    if problem:
        raise InputError(f"model: {url or path}/config.json: {problem}")
    sha256 = hashlib.sha256(raw).hexdigest()
    if url:
        path = cache_folder() / "models" / sha256
        path.mkdir(parents=True, exist_ok=True)
    return ModelFolder(path, config, sha256, _figures(url or str(path)), url)


def _figures(place: str) -> dict[str, Any]:
    try:
        with open_source(f"{place}/{FIGURES}") as handle:
            found = read_json(handle.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError):
        return {}  # a model without figures works as well as one with
    return found if isinstance(found, dict) else {}
