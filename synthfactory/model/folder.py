"""A model on disk: a folder with config.json and safetensors, known by hash before anything is loaded (no torch here).

FOLDER/config.json {format, id, revision, tile_size_px, resolution_mpp, sit, vae, encoder, files: {name: sha256}, licence, training}
FOLDER/{sit,vae,encoder}.safetensors, FOLDER/README.md (the card), FOLDER/figures.json (what was measured: no part of the identity)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthfactory.spec.errors import InputError

FORMAT = "synthfactory-model/1"
PARTS = ("sit", "vae", "encoder")
BUILT_IN = {"phantom": Path(__file__).parent / "weights" / "phantom"}
MAX_CONFIG_BYTES = 1 << 20
FIGURES = "figures.json"


@dataclass(frozen=True)
class ModelFolder:
    """What a model says of itself. `sha256` covers config.json, which names every weight file by sha256."""

    path: Path
    config: dict[str, Any]
    sha256: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the model, as published sets state it."""
        return str(self.config["id"])

    @property
    def revision(self) -> str:
        """Version of the weights."""
        return str(self.config["revision"])

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
    def licence(self) -> dict[str, Any]:
        """Terms that travel with every artefact."""
        return dict(self.config["licence"])

    @property
    def encoder(self) -> dict[str, str]:
        """Who made the embeddings that fit: id, sha256 of the weights, token."""
        entry = self.config["encoder"]
        return {"id": str(entry["id"]), "sha256": str(self.config["files"]["encoder.safetensors"]), "token": "class"}

    @property
    def seconds_per_call(self) -> float | None:
        """Measured seconds of one network call for one tile, on the machine that figures.json names; None where not measured."""
        timing = self.figures.get("timing")
        seconds = timing.get("seconds_per_call") if isinstance(timing, dict) else None
        return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None

    def check_files(self) -> None:
        """Compares every weight file with its sha256 in config.json; InputError where one is missing or differs."""
        for name, wanted in self.config["files"].items():
            path = self.path / name
            if not path.is_file():
                raise InputError(f"model: {path}: is missing; export the model again")
            digest = hashlib.sha256()
            with open(path, "rb") as handle:
                for block in iter(lambda: handle.read(1 << 20), b""):
                    digest.update(block)
            if digest.hexdigest() != wanted:
                raise InputError(
                    f"model: {path}: differs from the sha256 in config.json; the file is damaged or swapped"
                )


def open_model(name: str) -> ModelFolder:
    """The built-in model of that name, or the model folder at that path. InputError names what is wrong and what would be right."""
    path = BUILT_IN.get(name, Path(name).expanduser())
    try:
        raw = (path / "config.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if name in BUILT_IN:
            raise InputError(f"model: {name}: its weights are not installed; reinstall the package") from None
        known = ", ".join(BUILT_IN)
        raise InputError(
            f"model: '{name}': neither a built-in model ({known}) nor a folder with config.json, as `synthfactory-train export` writes"
        ) from None
    try:
        config = json.loads(raw[: MAX_CONFIG_BYTES + 1])
    except ValueError:
        raise InputError(f"model: {path / 'config.json'}: is no JSON; export the model again") from None
    problem = _config_problem(config)
    if problem:
        raise InputError(f"model: {path / 'config.json'}: {problem}")
    return ModelFolder(path, config, hashlib.sha256(raw).hexdigest(), _figures(path))


def _figures(path: Path) -> dict[str, Any]:
    try:
        with open(path / FIGURES, "rb") as handle:
            found = json.loads(handle.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError):
        return {}  # a model without figures works as well as one with
    return found if isinstance(found, dict) else {}


def _config_problem(config: Any) -> str | None:
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        return f"is not of format {FORMAT}; export the model with this version of synthfactory-train"
    wanted = {"id": str, "revision": str, "tile_size_px": int, "resolution_mpp": float, "files": dict, "licence": dict}
    for key, kind in (*wanted.items(), *((part, dict) for part in PARTS)):
        if not isinstance(config.get(key), kind):
            return f"'{key}' is missing or no {kind.__name__}"
    expected = {f"{part}.safetensors" for part in PARTS}
    if set(config["files"]) != expected:
        return f"'files' must name exactly {', '.join(sorted(expected))}"
    if not isinstance(config["sit"].get("condition_width"), int) or "id" not in config["encoder"]:
        return "'sit.condition_width' or 'encoder.id' is missing"
    return None
