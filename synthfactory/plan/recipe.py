"""The recipe: everything that decides what tiles look like, and nothing that decides how many there are or where they go.

Two builds with the same recipe may share an OUT. It seeds nothing, so that tiles of two recipes pair by slot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from synthfactory.spec.bags import Bags
from synthfactory.spec.schema import Spec

PER_CLASS = ("class_samplers", "class_banks")
BEFORE_SLIDES = 1  # a patient's tiles in turn, whatever their slides: sets that were begun so go on so
BEFORE_SITES = 2  # patients in turn, whatever their sites
BEFORE_STRIDES = 3  # blends of slots next to each other share all patients but one
CONDITIONS_VERSION = 3  # of plan/conditions.py: another choice of rows is another recipe
BLENDS_VERSION = 4  # the same under mechanism mix


@dataclass(frozen=True)
class ModelFacts:
    """What the plan needs to know of a model; `encoder` is {id, sha256, token}, sha256 '' where only the name is known.

    `source` is hf://OWNER/REPO@REVISION as asked for, or ''. `noise` says what of a candidate's own noise the backend takes.
    """

    id: str
    revision: str
    sha256: str
    condition_width: int
    encoder: Mapping[str, str]
    tile_size_px: int
    resolution_mpp: float
    licence: Mapping[str, Any] = field(default_factory=dict)
    encoder_licence: Mapping[str, Any] = field(default_factory=dict)  # {}: the encoder is the model's own
    encoder_source: tuple[str, str] | None = None  # as `source`, and commit, of an encoder of the Hub that was opened
    seconds_per_call: float | None = None
    domain: str | None = None  # what it draws, where that is not what its labels say
    source: str = ""
    backend: str = "native"
    noise: str = "start and streams"


def recipe(
    spec: Spec,
    model: ModelFacts,
    bank_macs: Mapping[str, str],
    released: Mapping[str, Any] | None = None,
    conditions_version: int = CONDITIONS_VERSION,
) -> dict[str, Any]:
    """The recipe as a JSON-ready dict. `bank_macs` are HMACs of each class's bank rows under a key that is not published.

    `conditions_version` is that of `version_of` where the set stands already.
    `released` is what a release under differential privacy adds: its sha256, the projection's and whose data that is.
    """
    screen = spec.screen.model_dump()
    if screen["nearest_real"] is not None:
        screen["nearest_real"]["holdout"] = "in lineage"  # where it lies is not published
    return {
        "name": spec.name,
        "model": {"id": model.id, "revision": model.revision, "sha256": model.sha256},
        "conditions_version": conditions_version,
        "seed_kind": "secret" if spec.seed == "secret" else "integer",
        "privacy": {**spec.privacy.settled(), **(released or {})},
        "sampler": spec.sampler.model_dump(),
        "class_samplers": {
            name: spec.sampler_for(name).model_dump()
            for name in sorted(spec.classes)
            if spec.sampler_for(name) != spec.sampler
        },
        "class_banks": dict(sorted(bank_macs.items())),
        "screen": screen,
        "format": spec.output.format,
        **({} if spec.bags is None else {"bags": _bags(spec, spec.bags)}),
    }


def _bags(spec: Spec, bags: Bags) -> dict[str, int | None]:
    """`patients` is None where a bag's tiles share nothing but their class."""
    return {"size": bags.size, "patients": bags.group if spec.bags_follow_patients else None}


def version_of(lock: Mapping[str, Any] | None, mechanism: str) -> int:
    """The choice of conditions with which a set goes on: that which it was begun with, as far as it is known here, else ours."""
    ours = BLENDS_VERSION if mechanism == "mix" else CONDITIONS_VERSION
    begun = ours if lock is None else int(lock["recipe"]["conditions_version"])
    return begun if begun in (BEFORE_SLIDES, BEFORE_SITES, BEFORE_STRIDES, ours) else ours


def recipe_hash(values: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a recipe without its per-class part (a class may join later)."""
    core = {key: value for key, value in values.items() if key not in PER_CLASS}
    return hashlib.sha256(json.dumps(core, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{path}."))
        else:
            found[path] = value
    return found


OTHER_ROWS = "in the bank (embeddings, patients, slides, sites, label level), or the seed they are fingerprinted with, are others"


def recipe_difference(old: Mapping[str, Any], new: Mapping[str, Any], known_classes: Set[str]) -> list[str]:
    """Readable lines of what differs; per-class parts are compared for classes that OUT already has and the spec still names."""
    lines = []
    empty: dict[str, Any] = dict.fromkeys(PER_CLASS, "")
    before, now = _flat({**old, **empty}), _flat({**new, **empty})
    for path in sorted(before.keys() | now.keys()):
        if before.get(path) != now.get(path):
            lines.append(f"{path}: was {_word(before.get(path))}, now {_word(now.get(path))}")
    for name in sorted(known_classes & new["class_banks"].keys()):
        was, is_now = old["class_samplers"].get(name), new["class_samplers"].get(name)
        if was != is_now:
            lines.append(f"classes.{name}.sampler: was {_word(was)}, now {_word(is_now)}")
    if old["seed_kind"] != new["seed_kind"]:
        return lines  # the keys of the banks' fingerprints differ with it
    others = sorted(name for name in known_classes & new["class_banks"].keys() if _bank(old, name) != _bank(new, name))
    if len(others) > 2 and len(others) == len(known_classes & new["class_banks"].keys()):
        return [*lines, f"embeddings or seed: the rows of every class {OTHER_ROWS}"]
    return [*lines, *(f"classes.{name}: its rows {OTHER_ROWS}" for name in others)]


def _bank(values: Mapping[str, Any], name: str) -> Any:
    return values["class_banks"][name]


def _word(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, sort_keys=True)
