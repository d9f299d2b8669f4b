"""What a model rests on, as `training` in its config.json says: its base, that one's base, and what guided any of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# (part of `training`, what the model did with it, what that one did with its sets). A guide's sets are all that it rests on, in one list.
_PARTS = (("base", "goes on from", "was trained on it"), ("guide", "learnt what differs from", "rests on it"))


def ancestry(training: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(how, sets) of the model itself, then of the nearest first: "goes on from ID, which was trained on it" is said of each of its sets.

    `training` is as it was read; what has another form than ours is passed over.
    """
    todo = [(training, "", "trained on it")]
    while todo:
        known, path, how = todo.pop(0)
        if not isinstance(known, dict):
            continue
        sets = known.get("sets")
        yield path + how, [each for each in sets if isinstance(each, dict)] if isinstance(sets, list) else []
        for part, verb, rests in _PARTS:
            before = known.get(part)
            if isinstance(before, dict):
                todo.append((before.get("training"), f"{path}{verb} {before.get('id')}, which ", rests))
