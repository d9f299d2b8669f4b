"""What stands beside a set's bags of features: bags.json for machines, README.md for people. Pure functions of their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthfactory.plan.lock import tile_terms
from synthfactory.report.card import cell, environment
from synthfactory.report.facts import bags, label_meaning, privacy

FORMAT = "synthfactory-bags/1"
INVENTED = "invented: a grid, side by side in the order of the tiles' indices; a synthetic tile has no place, so they mean nothing"


def description(lock: Mapping[str, Any], encoder: Mapping[str, str], licence: Mapping[str, Any]) -> dict[str, Any]:
    """bags.json: whose features these are, and under which terms. `encoder` is {id, sha256, token}, `licence` the encoder's."""
    return {
        "format": FORMAT,
        "synthetic": True,
        "set": lock["name"],
        "recipe_sha256": lock["recipe_sha256"],
        "model": {key: lock["model"][key] for key in ("id", "revision", "sha256")},
        "encoder": dict(encoder),
        "licence": tile_terms(lock),
        "encoder_licence": dict(licence),
        "mpp": lock["model"]["resolution_mpp"],
        "tile_size_px": lock["model"]["tile_size_px"],
        "bags": dict(lock["recipe"]["bags"]),
        "coords": INVENTED,
        "privacy": f"{privacy(lock)}; {bags(lock)}",
    }


def readme(lock: Mapping[str, Any], says: Mapping[str, Any], width: int) -> str:
    """README.md, Markdown; `says` is bags.json, `width` the features' E."""
    template = environment().get_template("bags.md.j2")
    text: str = template.render(
        says=says, width=width, privacy=privacy(lock, cell), bags=bags(lock), label_meaning=label_meaning(lock, cell)
    )
    return text
