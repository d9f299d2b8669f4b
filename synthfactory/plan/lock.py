"""spec.lock.yaml in OUT: what fixes the set and may be published. No seed, path, host, time, patient, or bank in the clear."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from synthfactory.plan.bags import bag_id
from synthfactory.plan.lock_form import Lock
from synthfactory.plan.recipe import OTHER_ROWS, PER_CLASS, ModelFacts, recipe_difference, recipe_hash
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.seal import sealed, unsealed
from synthfactory.spec.bags import Bags
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec
from synthfactory.spec.text import shown

FORMAT = "synthfactory/1"
DEFAULT_BATCH = 16
COHORTS = ("none", "unknown", "some")  # patients of a published model's training set: what may be claimed, worst last


def build_lock(
    spec: Spec,
    model: ModelFacts,
    recipe: Mapping[str, Any],
    classes: Sequence[str],
    label_levels: Sequence[str],
    encoder: Mapping[str, str],
    cohort: str,
) -> dict[str, Any]:
    """The lock of a first build; execution's open values are chosen here, once.

    InputError where it would not be read back: what no later build could agree with is never written.
    """
    execution = spec.execution
    lock = {
        "format": FORMAT,
        "name": spec.name,
        "recipe_sha256": recipe_hash(recipe),
        "recipe": dict(recipe),
        "model": {
            "id": model.id,
            "revision": model.revision,
            "sha256": model.sha256,
            "tile_size_px": model.tile_size_px,
            "resolution_mpp": model.resolution_mpp,
            "licence": dict(model.licence),
            "domain": model.domain,
            "source": model.source,
            "backend": model.backend,
            "noise": model.noise,
        },
        "encoder_licence": dict(model.encoder_licence),
        "terms": spec.terms.settled(dict(model.licence), dict(model.encoder_licence)),
        "encoder": {**encoder, **dict(zip(("source", "revision"), model.encoder_source or (), strict=False))},
        "training_cohort": cohort,
        "label_levels": sorted(label_levels),
        "classes": [{"name": name, "class_index": number} for number, name in enumerate(classes)],
        "execution": {
            "batch_size": execution.batch_size or DEFAULT_BATCH,
            "dtype": execution.dtype,
            "threads": execution.threads or 1,
            "compile": execution.compile,
            "strict": execution.strict,
        },
    }
    problem = _problem(lock)
    if problem:
        raise InputError(f"this build's {LOCK} could never be read back: {problem}")
    return lock


def _problem(lock: Mapping[str, Any]) -> str | None:
    """Where a lock is not of the form that `read_lock` demands, in words; None where it comes back as it is."""
    try:
        Lock.model_validate(lock)
        return None if read_lock(lock_yaml(lock)) == lock else "it comes back as another"
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(shown(str(step)) for step in first["loc"]) or "it"
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        return shown(str(error), 200)


def tile_terms(lock: Mapping[str, Any]) -> dict[str, Any]:
    """What every tile states: the model's licence, that of an encoder apart, and whether sharing is allowed, permitted or local."""
    encoder = lock["encoder_licence"].get("name")
    stated = {**lock["model"]["licence"], "sharing": lock["terms"]["sharing"]}
    return {**stated, "encoder": encoder} if encoder else stated


def bags_of(lock: Mapping[str, Any]) -> Bags | None:
    """The set's bags; None where it has none."""
    says = lock["recipe"].get("bags")
    return None if says is None else Bags(**says)


def stated(lock: Mapping[str, Any], class_name: str, index: int) -> dict[str, Any]:
    """What KEY.json of a tile must say, as it comes back from JSON; `label_level` is a list of those allowed.

    `bag_id` is None where the set has no bags: then no tile may state one.
    """
    (class_index,) = (entry["class_index"] for entry in lock["classes"] if entry["name"] == class_name)
    model, recipe, bags = lock["model"], lock["recipe"], bags_of(lock)
    says = {
        "class_index": class_index,
        "bag_id": None if bags is None else bag_id(lock["name"], bags, class_name, index),
        "label_level": lock["label_levels"],
        "width_px": model["tile_size_px"],
        "height_px": model["tile_size_px"],
        "mpp": model["resolution_mpp"],
        "format": recipe["format"],
        "model": {key: model[key] for key in ("id", "revision", "sha256")},
        "sampler": recipe["class_samplers"].get(class_name, recipe["sampler"]),
        "licence": tile_terms(lock),
    }
    found: dict[str, Any] = json.loads(json.dumps(says))
    return found


def lock_yaml(lock: Mapping[str, Any]) -> bytes:
    """Deterministic YAML, sealed."""
    text = yaml.safe_dump(sealed(lock), sort_keys=True, allow_unicode=True, width=120)
    return (
        b"# Written by synthfactory at the first build; every later build into this folder must agree with it.\n"
        + text.encode()
    )


class _PlainLoader(yaml.SafeLoader):
    """No aliases: a set may come from anyone, and a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def read_lock(data: bytes) -> dict[str, Any]:
    """The lock of an existing OUT; InputError where it is damaged, was changed since it was written, or is of another version."""
    try:
        lock = unsealed(yaml.load(data, Loader=_PlainLoader))  # noqa: S506 - a SafeLoader
        checked = Lock.model_validate(lock)
        # Equal, so that no field was left to a default: what reads the lock later finds all of it.
        complete = checked.model_dump() == lock and checked.format == FORMAT
        whole = complete and checked.recipe_sha256 == recipe_hash(lock["recipe"])
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        whole = False
    if not whole:
        raise InputError(
            f"{LOCK}: is damaged, was changed since it was written, or is not of format {FORMAT}; restore it from a copy, or choose a "
            "new output"
        )
    return dict(lock)


def check_same_recipe(lock: Mapping[str, Any], recipe: Mapping[str, Any], where: str) -> None:
    """InputError naming every difference where OUT was begun with another recipe."""
    known = {str(entry["name"]) for entry in lock["classes"]}
    lines = recipe_difference(lock["recipe"], recipe, known)
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        if all(line.endswith(OTHER_ROWS) for line in lines):
            listed += "\nA patient who withdrew consent leaves the set as well by `synthfactory revoke SPEC --patient ID --yes`."
        raise InputError(
            f"{where}: was built with another recipe; one output holds one recipe, so choose a new output.path, "
            f"or undo these changes:\n{listed}"
        )


def check_same_execution(lock: Mapping[str, Any], spec: Spec) -> None:
    """InputError where the spec asks for another batch size, number format or threads than OUT was begun with."""
    for key in ("batch_size", "dtype", "threads", "compile", "strict"):
        asked = getattr(spec.execution, key)
        if asked is not None and key in spec.execution.model_fields_set and asked != lock["execution"][key]:
            raise spec.error(
                f"execution.{key}",
                f"{asked} differs from {lock['execution'][key]}, with which this output was begun; leave it out or change it back",
            )


def check_same_terms(lock: Mapping[str, Any], spec: Spec, settled: Mapping[str, Any]) -> None:
    """InputError where the spec states another permission than the one that the output's tiles carry already."""
    for key in ("sharing", "permission"):
        if settled[key] != lock["terms"][key]:
            raise spec.error(
                "terms",
                f"{key} differs from that with which this output was begun, and its tiles state the terms; choose a new output.path, "
                "or change it back",
            )


def grown(
    lock: Mapping[str, Any], names: Sequence[str], recipe: Mapping[str, Any], label_levels: Sequence[str], cohort: str
) -> dict[str, Any]:
    """The lock with classes that are new appended (earlier class indices never change), and their samplers and label levels."""
    known = {entry["name"] for entry in lock["classes"]}
    return _with(
        lock,
        [name for name in names if name not in known],
        {part: recipe[part] for part in PER_CLASS},
        label_levels,
        cohort,
    )


def joined(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What a round that adds classes must say, for `with_joined` to come from the lock `before` to `after`; {} where none is new."""
    known = {entry["name"] for entry in before["classes"]}
    new = [entry["name"] for entry in after["classes"] if entry["name"] not in known]
    if not new:
        return {}
    parts = {
        part: {name: after["recipe"][part][name] for name in new if name in after["recipe"][part]} for part in PER_CLASS
    }
    both = {key: after[key] for key in ("label_levels", "training_cohort")}
    return {"classes": new, **parts, **both}


def with_joined(lock: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The lock that is true after these rounds' `joined` parts, in order. InputError where they are damaged."""
    found = dict(lock)
    try:
        for step in steps:
            known = {entry["name"] for entry in found["classes"]}
            new = [name for name in step["classes"] if name not in known]
            found = _with(
                found, new, {part: step[part] for part in PER_CLASS}, step["label_levels"], step["training_cohort"]
            )
        whole = Lock.model_validate(found).model_dump() == found
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise InputError(
            "rounds/: a file is damaged: what it says of its new classes fits no lock; restore it from a copy"
        )
    return found


def _with(
    lock: Mapping[str, Any], new: Sequence[str], parts: Mapping[str, Any], label_levels: Sequence[str], cohort: str
) -> dict[str, Any]:
    entries = [
        *lock["classes"],
        *({"name": name, "class_index": len(lock["classes"]) + at} for at, name in enumerate(new)),
    ]
    merged = {part: dict(sorted({**parts[part], **lock["recipe"][part]}.items())) for part in PER_CLASS}
    levels = sorted({*lock["label_levels"], *label_levels})
    worst = max(lock["training_cohort"], cohort, key=COHORTS.index) if new else lock["training_cohort"]
    return {
        **lock,
        "classes": entries,
        "label_levels": levels,
        "training_cohort": worst,
        "recipe": {**lock["recipe"], **merged},
    }
