"""What an export may be used for follows from what taught it: its base, its encoder, built sets, real tiles, in this run and in those whose
networks it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.embeddings.places import expand, is_pattern
from synthfactory.model.find import find_encoder
from synthfactory.model.folder import ModelFolder
from synthfactory.model.licence import NOT_STATED, known_licence
from synthfactory.phantom import CLASSES
from synthfactory.plan.lock import read_lock
from synthfactory.report.facts import is_unconditional
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from train.base import open_base
from train.config import Data, TrainConfig
from train.split import Split

Notes = Mapping[str, Any]  # of a run, RUN/extra.json


def built_sets(data: Data) -> list[dict[str, Any]]:
    """Name, recipe and terms of each set of ours among the data, also where its tars are named one by one or by a pattern: by them a model
    is known that was trained on a set, and they bind it.
    """
    found = list[dict[str, Any]]()
    for root in dict.fromkeys(root for entry in data.shards for root in _roots(entry.shards)):
        try:
            lock = read_lock(open_store(root, reading=True).read(LOCK))
        except (OSError, InputError):
            continue
        terms = {"licence": str(lock["model"]["licence"].get("name")), "sharing": str(lock["terms"]["sharing"])}
        invented = {str(entry["name"]) for entry in lock["classes"]} <= set(CLASSES)
        rests = {} if invented or is_unconditional(lock) else {"rests_on": "real tiles"}
        made = {"name": str(lock["name"]), "recipe_sha256": str(lock["recipe_sha256"]), **terms, **rests}
        found += [made] if made not in found else []
    return found


def _roots(place: str) -> Iterator[str]:
    """Where the lock of a set may lie: in a folder that is named, or above tars, OUT/shards/NAME.tar, or their folder."""
    if not (place.endswith(".tar") or is_pattern(place)):
        yield place
        yield place.rstrip("/").rpartition("/")[0] or "."
        return
    for tar in expand(place, "WebDataset tars"):
        folder = tar.rpartition("/")[0] or "."
        yield folder
        yield folder.rpartition("/")[0] or "."


def stated_terms(divided: Split) -> list[dict[str, str]]:
    """What the synthetic tiles that teach say of their own terms: sets whose lock is not at hand speak by their tiles."""
    index = divided.index
    found = {terms for tar in np.unique(index.tar_of[divided.train]) for terms in index.tar_terms[int(tar)]}
    return [{"licence": licence, "sharing": sharing} for licence, sharing in sorted(found)]


def notes_of(run: Path) -> dict[str, Any]:
    """RUN/extra.json. InputError where it is missing or damaged."""
    path = run / "extra.json"
    try:
        found = read_json(path.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: is missing or damaged; run the same command again, or remove the run folder and train it anew"
        )
    return found


def conditioned(config: TrainConfig) -> str | None:
    """The run whose encoder takes the place of the base's; mode vae only looks through the one that it names."""
    return None if config.mode == "vae" else config.encoder_run


def runs_behind(run: Path, config: TrainConfig) -> dict[str, Notes]:
    """Notes of the run ("data.shards") and, by the field that names them, of the runs whose networks an export takes as they are."""
    named = {"encoder_run": conditioned(config), "vae_run": config.vae_run if config.base is None else None}
    return {
        "data.shards": notes_of(run),
        **{field: notes_of(Path(at)) for field, at in named.items() if at is not None},
    }


def sets_behind(behind: Mapping[str, Notes]) -> list[dict[str, Any]]:
    """Built sets that taught any of them, each once."""
    found = list[dict[str, Any]]()
    for notes in behind.values():
        found += [each for each in notes.get("sets") or () if each not in found]
    return found


def saw_real(behind: Mapping[str, Notes]) -> bool:
    """Whether tiles taught that are not flagged synthetic."""
    return any(int(notes["tiles"]) > int(notes["synthetic_tiles"]) for notes in behind.values())


def _rests_on_real(behind: Mapping[str, Notes]) -> list[str]:
    """Names of built sets whose conditions came from real tiles, as far as labels tell: their terms came on top of the model's."""
    return sorted({str(each["name"]) for each in sets_behind(behind) if each.get("rests_on")})


def _closed(behind: Mapping[str, Notes]) -> str | None:
    """The first built set that may not be shared, in words."""
    for field, notes in behind.items():
        for each in [*(notes.get("sets") or ()), *(notes.get("terms") or ())]:
            if each.get("sharing", "allowed") != "allowed":
                who = f"set {each['name']} is" if "name" in each else "synthetic tiles are"
                return f"{field}: {who} under {each['licence']}, sharing {each['sharing']}"
    return None


def export_terms(config: TrainConfig, licence: dict[str, Any] | None, behind: Mapping[str, Notes]) -> dict[str, Any]:
    """What the export states. InputError, before anything is written, where terms would be changed that are not its maker's to change:
    those of a base that may not be shared, or that is gated, of a gated encoder whose embeddings it learnt from, and of built sets that
    may not be shared.
    """
    closed = _closed(behind)
    if closed is not None and licence is not None and licence.get("sharing") == "allowed":
        raise InputError(f"{closed}, which binds what learns from it; leave the licence out")
    if config.base is None:
        return {"name": NOT_STATED, "sharing": "local"} if licence is None else licence
    base = open_base(config.base)
    stated = dict(base.licence)
    bound = base.gated
    if isinstance(base, ModelFolder) and conditioned(config) is None:
        gated = known_licence(base.encoder["id"])
        if not gated and not base.has_encoder:
            apart = find_encoder(config.base, base)
            gated = dict(apart.licence) if apart.gated else {}
        if gated:
            bound = True
            stated = {**gated, **stated, "embeddings": f"{base.encoder['id']}: {gated['name']}"}
    if bound:
        stated["sharing"] = "local"
    if licence is not None and stated.get("sharing") != "allowed" and licence != stated:
        raise InputError(f"base: {config.base.name} is under {_named(stated)}, whose terms stay; leave the licence out")
    if licence is None and (closed is not None or saw_real(behind)):
        stated["sharing"] = "local"  # whoever holds the real tiles may decide otherwise, and says so by a licence
    resting = _rests_on_real(behind)
    if licence is None and resting:
        stated["sharing"] = "local"  # likewise
        stated["real_tiles"] = f"behind {', '.join(resting)}: their terms come on top"
    return stated if licence is None else licence


def _named(terms: dict[str, Any]) -> str:
    embeddings = terms.get("embeddings")
    return f"{terms.get('name')}{f' (embeddings of {embeddings})' if embeddings else ''}"
