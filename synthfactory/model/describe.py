"""`synthfactory model show`: what a model or an encoder says of itself. Fetches configurations, not weights; runs no code; no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from synthfactory.model.encoder import WEIGHTS, EncoderFolder, open_encoder
from synthfactory.model.files import shapes_in
from synthfactory.model.find import find_model
from synthfactory.model.folder import BUILT_IN, ModelFolder
from synthfactory.model.hub import pin
from synthfactory.model.pipeline import INDEX, PipelineRepo, open_pipeline
from synthfactory.spec.hubname import hub_name, is_hub
from synthfactory.spec.model import Pipeline, model_named


def describe(name: str) -> Iterator[str]:
    """Lines on the model or encoder of that name. InputError where there is none."""
    meant = model_named(name)
    if is_hub(name):
        pinned = pin(hub_name(name))
        if INDEX in pinned.files:
            yield from _pipeline(open_pipeline(pinned, Pipeline()))
            return
        if WEIGHTS in pinned.files:
            yield from _encoder(open_encoder(f"hf://{pinned.repo}@{pinned.commit}"))
            return
    elif name not in BUILT_IN and (Path(os.path.expanduser(name)) / WEIGHTS).is_file():
        yield from _encoder(open_encoder(name))
        return
    found = find_model(meant)
    assert isinstance(found, ModelFolder)
    yield from _folder(found)


def _folder(folder: ModelFolder) -> Iterator[str]:
    yield f"{folder.id} revision {folder.revision}, run by our code (native)"
    yield f"sha256       {folder.sha256}"
    yield f"tiles        {folder.tile_size_px} px at {folder.resolution_mpp:g} um/px"
    yield f"conditions   width {folder.condition_width}, by {_maker(folder.encoder)}"
    for part in ("sit", "vae", "encoder"):
        if part in folder.parts:
            path = folder.path / f"{part}.safetensors"
            yield f"{part:<12} {_size(path)}, sha256 {folder.config['files'][path.name]}"
        else:
            yield f"{part:<12} named only"
    yield from _terms(folder.licence, folder.gated)


def _pipeline(repo: PipelineRepo) -> Iterator[str]:
    yield f"{repo.id} revision {repo.revision}, run by its own code (official): class {repo.class_name} in {repo.entry}"
    yield f"sha256       {repo.sha256}"
    yield f"tiles        {repo.tile_size_px} px at {repo.resolution_mpp:g} um/px, as the spec's model.pipeline says"
    yield f"conditions   width {repo.condition_width}, by {repo.encoder['id']}, likewise"
    yield f"it takes     {', '.join(repo.arguments)}"
    yield f"noise        of each tile's own that it takes: {repo.noise}"
    for path in repo.files:
        blob = repo.pin.files[path]
        held = f", {_size(repo.root / path)}" if path.endswith(".safetensors") else ""
        yield f"file         {path}, {blob.bytes:,} bytes, {blob.kind} {blob.digest}{held}"
    yield from _terms(repo.licence, repo.gated)


def _encoder(encoder: EncoderFolder) -> Iterator[str]:
    yield f"{encoder.id}{' revision ' + encoder.revision if encoder.revision else ''}, an encoder"
    yield f"sha256       {encoder.sha256}"
    yield f"input        {encoder.image_size_px} px, mean {list(encoder.mean)}, std {list(encoder.std)}"
    yield f"embeddings   width {encoder.width}, token {encoder.token}"
    yield f"weights      {_size(encoder.weights)}"
    yield from _terms(encoder.licence, encoder.gated)


def weight_bytes(model: ModelFolder | PipelineRepo) -> int | None:
    """Bytes of the weights in memory, as float32; None where they are not here and no one says their size."""
    if isinstance(model, PipelineRepo):
        return sum(model.pin.files[path].bytes for path in model.pin.named(".safetensors"))
    paths = [model.path / f"{part}.safetensors" for part in model.parts]
    if not all(path.is_file() for path in paths):
        return None
    return 4 * sum(math.prod(shape) for path in paths for shape in shapes_in(path, "export it again").values())


def _maker(encoder: dict[str, str]) -> str:
    return f"{encoder['id']} ({encoder['sha256'][:12] or 'its weights are not named'}), token {encoder['token']}"


def _size(path: Path) -> str:
    """Parameters, read off the header where the file is here."""
    if not path.is_file():
        return "not fetched yet"
    shapes = shapes_in(path, "fetch or export it again")
    count = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("bn."))
    return f"{count / 1e6:.1f}M parameters" if count >= 1e5 else f"{count:,} parameters"


def _terms(licence: dict[str, object], gated: bool) -> Iterator[str]:
    more = ", ".join(f"{key}: {value}" for key, value in sorted(licence.items()) if key not in ("name", "gated"))
    yield f"licence      {licence.get('name')}{' (' + more + ')' if more else ''}{'; gated' if gated else ''}"
