"""The engine that a lock asks for: our networks on a model folder, or a pinned repository's own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthfactory.model.encoder import EncoderFolder
from synthfactory.model.find import Opened
from synthfactory.model.folder import ModelFolder
from synthfactory.model.weights import load_encoder, load_model
from synthfactory.run.fingerprint import compiles
from synthfactory.sample.engine import Engine
from synthfactory.sample.official import AnyEngine, OfficialEngine
from synthfactory.spec.errors import InputError


def make_engine(model: Opened, encoder: EncoderFolder | None, execution: Mapping[str, Any]) -> AnyEngine:
    """Loads weights (for a pipeline: runs its code) with the lock's number format, threads and batch. InputError as they say."""
    dtype, threads = execution["dtype"], execution["threads"]
    if not isinstance(model, ModelFolder):
        if dtype != "float32":
            raise InputError(
                f"model: {model.id}: is run by its own pipeline, in float32 only; {dtype} is for our networks"
            )
        return OfficialEngine(model, load_encoder(encoder) if encoder else None, threads=threads)
    return Engine(
        load_model(model, encoder),
        dtype=dtype,
        threads=threads,
        compiled=compiles(execution),
        full_rows=int(execution["batch_size"]),
    )
