"""The model and encoder of a spec, opened and checked against one another, the sampler, the terms, and what an earlier build locked.

Reads only; imports no torch and runs no repository's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthfactory.model.encoder import EncoderFolder
from synthfactory.model.find import Opened, find_encoder, find_model
from synthfactory.model.folder import ModelFolder
from synthfactory.model.licence import known_licence
from synthfactory.plan.calibration import resolved
from synthfactory.plan.lock import read_lock
from synthfactory.plan.recipe import ModelFacts
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import is_commit
from synthfactory.spec.schema import Spec


@dataclass(frozen=True)
class Chosen:
    """A spec with its model opened. `spec` names both by commit, so that workers open the very same; `encoder` is None where none
    is needed.
    """

    spec: Spec
    model: Opened
    encoder: EncoderFolder | None
    facts: ModelFacts


def choose_model(spec: Spec) -> Chosen:
    """Opens model and encoder as the spec asks. InputError at the spec's own line for whatever does not go together."""
    lock = _standing_lock(spec)
    try:
        model = find_model(spec.model, _locked(lock, "model", spec.model.source))
        encoder = _encoder(spec, model, lock)
    except InputError as error:
        raise spec.error("model", str(error).removeprefix("model: ")) from None
    _check_samplers(spec, model)
    spec = resolved(spec, model.sha256, str(model.path) if isinstance(model, ModelFolder) else None, lock)
    encoder_licence = _encoder_licence(model, encoder)
    _check_accepted(spec, model, encoder, encoder_licence)
    facts = ModelFacts(
        id=model.id,
        revision=model.revision,
        sha256=model.sha256,
        condition_width=model.condition_width,
        encoder=model.encoder if encoder is None else encoder.facts(),
        encoder_source=None if encoder is None or not encoder.source else (encoder.source, encoder.revision),
        tile_size_px=model.tile_size_px,
        resolution_mpp=model.resolution_mpp,
        licence=model.licence,
        encoder_licence=encoder_licence,
        seconds_per_call=model.seconds_per_call,
        source=spec.model.source,
        backend=model.backend,
        noise=model.noise,
        domain=model.domain,
    )
    apart = spec.model.encoder
    if encoder is not None and encoder.source:
        apart = f"{encoder.source.partition('@')[0]}@{encoder.revision}"
    pinned = spec.model.pinned(model.revision, apart)
    return Chosen(spec.model_copy(update={"model": pinned}), model, encoder, facts)


def _standing_lock(spec: Spec) -> Mapping[str, Any] | None:
    """The lock in OUT, where revisions or steps could be locked; None where there is none (or a damaged one, which is refused later)."""
    floating = [hub for hub in (spec.model.hub, spec.model.encoder_hub) if hub and not is_commit(hub.revision)]
    by_default = spec.model.encoder is None and needs_encoder(spec)  # H0-mini's main, perhaps
    auto = any(spec.sampler_for(name).steps == "auto" for name in spec.classes)
    if not floating and not by_default and not auto:
        return None
    try:
        return read_lock(open_store(spec.output.path).read(LOCK))
    except (OSError, InputError):
        return None


def _locked(lock: Mapping[str, Any] | None, part: str, source: str) -> str | None:
    """The commit that an earlier build locked for the same name and revision; None where it asked for something else."""
    if lock is None or not source or lock[part].get("source") != source:
        return None
    commit = str(lock[part]["revision"])
    return commit if is_commit(commit) else None


def needs_encoder(spec: Spec) -> bool:
    """Whether a build embeds anything itself: real tiles, or its own for the agreement screen."""
    source = spec.embeddings
    return source.tiles is not None or source.shards is not None or spec.screen.embeds


def _encoder(spec: Spec, model: Opened, lock: Mapping[str, Any] | None) -> EncoderFolder | None:
    if spec.model.encoder is None and not needs_encoder(spec):
        return None
    hub = spec.model.encoder_hub
    asked = f"hf://{hub.repo}@{hub.revision}" if hub else str(lock["encoder"].get("source", "")) if lock else ""
    return find_encoder(spec.model, model, _locked(lock, "encoder", asked))


def _check_samplers(spec: Spec, model: Opened) -> None:
    """A repository's pipeline brings its own solver and runs in float32, our code has none of that name: said at the field itself."""
    if model.backend == "official" and spec.execution.dtype != "float32":
        raise spec.error(
            "execution.dtype",
            f"'{spec.execution.dtype}' is for our own networks, but {model.id} is run by its own pipeline, in float32; leave it out",
        )
    named = [("sampler", spec.sampler)]
    named += [
        (f"classes.{name}.sampler", spec.sampler_for(name)) for name, item in spec.classes.items() if item.sampler
    ]
    for path, sampler in named:
        if model.backend == "official" and sampler.method != "pipeline":
            raise spec.error(
                f"{path}.method",
                f"'{sampler.method}' is ours, but {model.id} is run by its own pipeline, which brings its own solver; "
                "write method: pipeline (steps and guidance are passed on)",
            )
        if model.backend == "native" and sampler.method == "pipeline":
            raise spec.error(
                f"{path}.method",
                f"'pipeline' goes with backend official, but {model.id} is run by our code; write ode or sde",
            )


def _encoder_licence(model: Opened, encoder: EncoderFolder | None) -> dict[str, Any]:
    """Terms of whoever made the embeddings: known even where only its name is; {} where they are the model's own."""
    if encoder is None or (isinstance(model, ModelFolder) and model.has_encoder):
        return known_licence(model.encoder["id"])  # also where a copy of a gated encoder lies in the folder
    return dict(encoder.licence)


def _check_accepted(
    spec: Spec, model: Opened, encoder: EncoderFolder | None, encoder_licence: Mapping[str, Any]
) -> None:
    wanted = [(model.id, str(model.licence.get("name")))] if model.gated else []
    encoder_id = model.encoder["id"] if encoder is None else encoder.id
    if encoder_licence and ((encoder is not None and encoder.gated) or known_licence(encoder_id)):
        wanted.append((encoder_id, str(encoder_licence["name"])))
    for name, licence in wanted:
        if not spec.terms.accepts(licence, name):
            raise spec.error(
                "terms.accept",
                f"{name} is gated under {licence}, which is not accepted here; read it at https://huggingface.co/{name}, then "
                f"write terms: {{accept: [{licence}]}}",
            )
