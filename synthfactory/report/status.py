"""How far a set has come, in words, and its first tiles. Reads commits and shards only (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthfactory.plan.rounds import Round, num_shards, totals
from synthfactory.shards.base import Store
from synthfactory.shards.commit import Commit, list_commits
from synthfactory.shards.reader import iter_tiles
from synthfactory.spec.text import counted


def progress(lock: Mapping[str, Any], rounds: Sequence[Round], commits: Mapping[int, Commit]) -> dict[str, Any]:
    """How far a set has come, as JSON: {complete, tiles, asked, shards, shards_asked, classes: {name: {tiles, asked, shortfall}}}."""
    asked = totals(rounds)
    made, missing = Counter[str](), Counter[str]()
    for commit in commits.values():
        made.update(commit.classes)
        missing.update({name: len(indices) for name, indices in commit.shortfall.items()})
    tiles, wanted = sum(made.values()), sum(asked.values())
    names = [str(entry["name"]) for entry in lock["classes"]]
    return {
        "complete": wanted > 0 and tiles == wanted,
        "tiles": tiles,
        "asked": wanted,
        "shards": len(commits),
        "shards_asked": num_shards(rounds),
        "classes": {
            name: {"tiles": made[name], "asked": asked.get(name, 0), "shortfall": missing[name]} for name in names
        },
    }


def render_status(found: Mapping[str, Any], width: int = 80) -> str:
    """`progress` as text of at most `width` columns."""
    state = "complete" if found["complete"] else "not complete"
    done = f"{found['tiles']:,} of {counted(found['asked'], 'tile')}"
    lines = [f"{state}, {done} in {found['shards']:,} of {counted(found['shards_asked'], 'shard')}", ""]
    name_width = min(max(len("class"), *map(len, found["classes"])), width - 42)
    lines.append(f"{'class':<{name_width}} {'tiles':>12} {'asked':>12} {'shortfall':>12}")
    for name, each in found["classes"].items():
        shown = name if len(name) <= name_width else name[: name_width - 1] + "…"
        lines.append(f"{shown:<{name_width}} {each['tiles']:>12,} {each['asked']:>12,} {each['shortfall']:>12,}")
    left = found["shards_asked"] - found["shards"]
    if left:
        lines.extend(
            ["", f"{left:,} shard{'s are' if left > 1 else ' is'} still to be made; run the same build again to go on"]
        )
    elif not found["complete"]:
        lines.extend(
            ["", "every shard is made; the shortfall found no candidate within budget.max_attempts and stays empty"]
        )
    return "\n".join(lines)


def first_tiles(store: Store, classes: Sequence[str], count: int) -> dict[str, list[np.ndarray]]:
    """The first `count` tiles of each class, uint8 (H, W, 3), in the order of the shards; reads no further than needed."""
    left, shards = Counter(dict.fromkeys(classes, count)), set[int]()
    for shard, commit in list_commits(store).items():
        if any(left[name] > 0 for name in commit.classes):
            shards.add(shard)
            left.subtract(commit.classes)
    found: dict[str, list[np.ndarray]] = {name: [] for name in classes}
    seen = Counter[str]()

    def keep(_: int, record: Mapping[str, Any]) -> bool:
        name = str(record["label"])
        seen[name] += 1
        return name in found and seen[name] <= count

    for _, image, record in iter_tiles(store, shards, keep):
        found[str(record["label"])].append(image)
    return found
