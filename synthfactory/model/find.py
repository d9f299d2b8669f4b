"""From what a spec names to a model that is opened: a folder of our form (native), or a pinned pipeline (official). No torch."""

from __future__ import annotations

from dataclasses import replace

from synthfactory.model.encoder import EncoderFolder, encoder_of, open_encoder
from synthfactory.model.folder import CONFIG, FIGURES, ModelFolder, open_model
from synthfactory.model.hub import Pin, fetched, pin
from synthfactory.model.pipeline import INDEX, PipelineRepo, open_pipeline
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import DEFAULT_REVISION, SHORT, HubName, is_commit, repo_of
from synthfactory.spec.model import Model, Pipeline

Opened = ModelFolder | PipelineRepo
H0_MINI = SHORT["h0-mini"]


def find_model(model: Model, locked: str | None = None) -> Opened:
    """Opens what `model` names. `locked` is the commit that an earlier build locked for the same name; the Hub is then not asked.

    InputError where it is not there, access is refused, or its form is not one that the backend can run. Weights are fetched later,
    by `check_files` of what is returned.
    """
    if model.hub is None:
        return open_model(model.name)
    asked = model.hub if locked is None else HubName(model.hub.repo, locked)
    pinned = pin(asked)
    official = INDEX in pinned.files if model.backend is None else model.backend == "official"
    if official:
        _check_trust(model, pinned)
        return open_pipeline(pinned, model.pipeline or Pipeline())
    return _native(pinned)


def _check_trust(model: Model, pinned: Pin) -> None:
    """Code of a repository runs only where the spec says so, and only the code of one commit, which a person can have read."""
    assert model.hub is not None
    right = f"model: {{name: {model.name.partition('@')[0]}, revision: {pinned.commit}, trust_remote_code: true}}"
    if not model.trust_remote_code:
        raise InputError(
            f"{pinned.repo}: is run by its own code; read it at {pinned.page}/tree/{pinned.commit}, then allow it with {right}"
        )
    if not is_commit(model.hub.revision):
        raise InputError(
            f"{pinned.repo}: trust_remote_code needs a commit, and '{model.hub.revision}' may move to code that nobody here has read; "
            f"it is this commit now: {right}"
        )


def _native(pinned: Pin) -> ModelFolder:
    if CONFIG not in pinned.files:
        raise InputError(
            f"{pinned.repo}: holds no model of our form at {pinned.commit} (no {CONFIG}); convert a copy of it with "
            "`synthfactory model import`, or use backend: official"
        )
    root = fetched(pinned, [path for path in (CONFIG, FIGURES) if path in pinned.files])
    return replace(open_model(str(root)), pin=pinned)


def find_encoder(model: Model, opened: Opened, locked: str | None = None) -> EncoderFolder:
    """The encoder whose embeddings condition the model: the one named apart, else the model's own, else H0-mini by name.

    `locked` as in `find_model`. InputError where none is at hand, and where the one named is not the model's.
    """
    known = opened.encoder
    if model.encoder is not None:
        hub = model.encoder_hub
        name = f"hf://{hub.repo}@{hub.revision}" if hub else model.encoder
        found = _encoder_at(name, locked) if hub else open_encoder(name, known["id"])
        if repo_of(found.id) != repo_of(known["id"]) or known["sha256"] not in ("", found.sha256):
            raise InputError(
                f"{model.encoder}: is {found.id} ({found.sha256[:12]}), but {opened.id} is conditioned on embeddings of "
                f"{known['id']}{' (' + known['sha256'][:12] + ')' if known['sha256'] else ''}; name that encoder"
            )
    elif isinstance(opened, ModelFolder) and opened.has_encoder:
        found = encoder_of(opened)
    elif repo_of(known["id"]) == H0_MINI:
        found = _encoder_at(f"hf://{H0_MINI}@{DEFAULT_REVISION}", locked)
    else:
        raise InputError(
            f"{opened.id}: holds no encoder; name {known['id']} under model.encoder (a folder, or hf://OWNER/REPO)"
        )
    if found.width != opened.condition_width:
        raise InputError(
            f"{found.id}: its embeddings are {found.width} wide, but {opened.id} is conditioned on width {opened.condition_width}"
        )
    if found.image_size_px != opened.tile_size_px:
        raise InputError(
            f"{found.id}: takes {found.image_size_px} px, but {opened.id} draws tiles of {opened.tile_size_px} px; no tile is resized"
        )
    return found


def _encoder_at(asked: str, locked: str | None) -> EncoderFolder:
    """At the locked commit where there is one; known by what was asked for all the same."""
    if locked is None:
        return open_encoder(asked)
    return replace(open_encoder(f"{asked.partition('@')[0]}@{locked}"), source=asked)
