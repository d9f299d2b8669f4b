"""OUT/README.md: the set's card, Markdown under the Hugging Face Hub's YAML front matter; and OUT/croissant.json beside it.

Class names, licence terms and fingerprints are of unknown origin: in Markdown every one passes `cell`, in YAML `quoted`, so that none
can break a table, open a link or add a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from synthfactory.report.croissant import croissant_json
from synthfactory.report.facts import (
    Execution,
    bags,
    cohort,
    gather,
    image_format,
    is_unconditional,
    label_meaning,
    other_terms,
    privacy,
    size_category,
    terms,
    version,
)
from synthfactory.shards.commit import Commit

__all__ = ["croissant_json", "dataset_card"]

TEMPLATES = Path(__file__).parent / "templates"
SHARING = {"local": "local use", "allowed": "sharing allowed", "permitted": "sharing by permission"}
CONDITIONS = {
    "none": "the embedding of one real tile labelled X",
    "mix": "a blend of embeddings of real tiles labelled X",
    "dp": "a draw from what was released of real tiles labelled X",
}
FIRST_COLUMNS = ("device", "dtype", "batch_size", "threads", "attention", "torch")
SCREENS = {
    "tissue": "share of pixels that show tissue",
    "blur": "sharpness (mean absolute Laplacian of optical density)",
    "nearest_real": "cosine similarity to the bank's nearest real tile, against what real tiles of other patients reach",
    "agreement": "cosine similarity of the tile's embedding to its condition",
}
_ACTIVE = re.compile(r"([\\`*_{}\[\]#!|~$@:])")  # what starts markup, a link or a mention


def dataset_card(lock: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], commits: Mapping[int, Commit]) -> bytes:
    """The card of a set, complete or not: a pure function of its arguments."""
    kind, extension = image_format(lock)
    name, sharing = terms(lock)
    facts = gather(lock, rounds, commits)
    template = environment().get_template("dataset-card.md.j2")
    return template.render(
        lock=lock,
        model=lock["model"],
        facts=facts,
        version=version(lock, rounds),
        size=size_category(facts.made),
        hub_licence=_hub_licence(name, is_unconditional(lock)),
        terms_name=name,
        other_terms=other_terms(lock),
        sharing=sharing,
        sharing_words=SHARING[lock["terms"]["sharing"]],
        privacy=privacy(lock, cell),
        bags=bags(lock),
        label_meaning=label_meaning(lock, cell),
        condition=CONDITIONS[lock["recipe"]["privacy"]["mechanism"]],
        unconditional=is_unconditional(lock),
        cohort=cohort(lock),
        format=kind,
        extension=extension,
        samplers=_samplers(lock["recipe"]),
        screens=_screens(lock["recipe"].get("screen") or {}),
        fingerprint_columns=_columns(facts.executions),
    ).encode()


def cell(value: Any) -> str:
    """Any value as inert text on one line of Markdown, fit for a table's cell."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    flat = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return _ACTIVE.sub(r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def quoted(value: str) -> str:
    """A string as a YAML scalar that holds nothing but it (JSON in ASCII is YAML)."""
    return json.dumps(value)


def environment(*, html: bool = False) -> jinja2.Environment:
    """For templates: what is not defined is an error; filters `cell` and `quoted`. In HTML, values are escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(cell=cell, quoted=quoted)
    return made


def _hub_licence(name: str, unconditional: bool) -> dict[str, str]:
    """The Hub's front matter: a plain licence nowhere, since the terms of the real tiles behind the embeddings come on top, and where there
    are none nobody knows whom the model learnt from.
    """
    plain = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:40] or "unknown"
    return {"license": "other", "license_name": plain if unconditional else f"{plain}-and-terms-of-the-source"}


def _samplers(recipe: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(whose, sampler): the set's own, then those of classes that differ."""
    return [
        ("all other classes" if recipe.get("class_samplers") else "all classes", recipe["sampler"]),
        *sorted((recipe.get("class_samplers") or {}).items()),
    ]


def _screens(screens: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, what it looks at, limits) of the screens that are on."""
    return [
        (
            name,
            SCREENS.get(name, ""),
            ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sorted(limits.items()) if key != "holdout"),
        )
        for name, limits in sorted(screens.items())
        if isinstance(limits, Mapping)
    ]


def _columns(executions: Sequence[Execution]) -> list[str]:
    """Names of all fingerprint entries, the telling ones first."""
    found = {name for execution in executions for name in execution.fingerprint}
    return [*(name for name in FIRST_COLUMNS if name in found), *sorted(found.difference(FIRST_COLUMNS))]
